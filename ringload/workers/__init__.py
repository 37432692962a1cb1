"""Workers: the processes that fill slots, and the trainer's side of them."""
