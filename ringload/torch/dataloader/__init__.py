"""`ringload.torch.DataLoader`: torch's DataLoader over map-style datasets, on the ring."""
