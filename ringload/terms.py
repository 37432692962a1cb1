"""Words of other libraries: what an argument of theirs is called here, and how an object of theirs is loaded from.

Data, and the sentences that are made of them. Imported when an error needs them; imports no library, but knows classes by
their names.

In the tables: name -> the name here, or a sentence about what does its work.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ringload.checks import nearest, short

OWN_OF_LOADER = (
    *("source", "batch_size", "workers", "ram_budget", "shuffle", "seed", "last", "shard", "on_error", "max_bad"),
    *("sample_timeout", "stall_timeout", "restarts", "start_method", "copy", "worker_setup", "epochs", "order"),
    *("observers", "fields", "n_samples", "threads", "cache", "cache_bytes", "cache_size"),
)
OWN_OF_IMAGES = (
    *("df", "path", "label", "size", "root", "classes", "label_mode", "weight", "color", "dtype", "scale", "resize"),
    *("crop_area", "crop_ratio", "interpolation", "flip", "exif", "transform", "max_pixels", "background", "value_range"),
    *("truncated", "read_ahead", "read_options", "follow_links"),
)
DONE_BY_TRANSFORM = "transform=, a function transform(image, rng) or an albumentations transform, does that"
OF_CHANNELS = (
    "dtype='float32', scale=(low, high) is one for all channels; for a mean and a deviation of each, normalise in the model, "
    "or have transform= return float32"
)
DONE_BY_RING = "leave it out: the ring is filled ahead, as far as ram_budget= allows"
DONE_BY_SPLIT = "make one source of all samples; source.split(0.2) gives the parts"
OWN_ORDER = (
    "for an order of your own give image_frame.subset(indices) with shuffle=False, where indices may repeat; "
    "ringload.torch.DataLoader takes torch's samplers"
)
ALWAYS_IN_ORDER = "leave it out: batches always come in order"
ALWAYS_PROCESSES = "leave it out: workers are always processes, and workers=0 loads in this one"

LOADER = {  # of torch, Keras, tf.data
    "dataset": "source",
    "num_workers": "workers",
    "num_parallel_calls": "workers",
    "n_workers": "workers",
    "batch": "batch_size",
    "random_seed": "seed",
    "random_state": "seed",
    "ram": "ram_budget",
    "multiprocessing_context": "start_method",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "drop_last": "last='drop', the default, leaves out samples that do not fill a batch; last='keep' keeps them",
    "drop_remainder": "last='drop', the default, leaves out samples that do not fill a batch; last='keep' keeps them",
    "prefetch_factor": DONE_BY_RING,
    "prefetch": DONE_BY_RING,
    "buffer_size": DONE_BY_RING,
    "max_queue_size": DONE_BY_RING,
    "shuffle_buffer": "leave it out: shuffle=True shuffles all samples, whatever their number",
    "pin_memory": "leave it out: ringload.torch.Batches(loader, 'cuda') makes the ring page-locked",
    "pin_memory_device": "leave it out: ringload.torch.Batches(loader, 'cuda') makes the ring page-locked",
    "persistent_workers": "leave it out: workers stay from epoch to epoch",
    "sampler": OWN_ORDER,
    "batch_sampler": OWN_ORDER,
    "collate_fn": "leave it out: samples are written into the rows of a batch; ringload.torch.DataLoader takes one",
    "transforms": "transform= of ringload.ImageFrame and ImageFolder does that; a function load(index, rng, out) by itself",
    "timeout": "stall_timeout= is for the next batch, sample_timeout= for a single sample",
    "worker_init_fn": "worker_setup=, a function without arguments, does that",
    "generator": "seed=, an integer, does that",
    "in_order": ALWAYS_IN_ORDER,
    "deterministic": ALWAYS_IN_ORDER,
    "use_multiprocessing": ALWAYS_PROCESSES,
    "rank": "shard=(rank, world) does that, or shard='auto'",
    "world_size": "shard=(rank, world) does that, or shard='auto'",
    "num_replicas": "shard=(rank, world) does that, or shard='auto'",
    "num_shards": "shard=(rank, world) does that, or shard='auto'",
    "steps_per_epoch": "leave it out: an epoch is one pass, of len(loader) batches",
    "repeat": "leave it out: each `for` over the loader is one epoch, and the next one begins the next",
    "device": "ringload.torch.Batches(loader, device) and ringload.jax.Batches(loader, device) copy batches to one",
    "allow_pickle": "it is an argument of ringload.torch.DataLoader",
}
IMAGES = {  # of Keras' flow_from_dataframe and image_dataset_from_directory, torchvision
    "dataframe": "df",
    "x_col": "path",
    "y_col": "label",
    "weight_col": "weight",
    "directory": "root",
    "root_dir": "root",
    "target_size": "size",
    "image_size": "size",
    "img_size": "size",
    "class_mode": "label_mode",
    "class_names": "classes",
    "color_mode": "color",
    "horizontal_flip": "flip",
    "transforms": "transform",
    "preprocessing_function": "transform",
    "labels": "label= names the column of labels; ImageFolder has them from its folders",
    "rescale": "dtype='float32', scale=(0, 1) maps 0..255 onto 0..1; uint8 takes a quarter of the memory",
    "mean": OF_CHANNELS,
    "std": OF_CHANNELS,
    "vertical_flip": DONE_BY_TRANSFORM,
    "rotation_range": DONE_BY_TRANSFORM,
    "zoom_range": DONE_BY_TRANSFORM,
    "shear_range": DONE_BY_TRANSFORM,
    "width_shift_range": DONE_BY_TRANSFORM,
    "height_shift_range": DONE_BY_TRANSFORM,
    "brightness_range": DONE_BY_TRANSFORM,
    "channel_shift_range": DONE_BY_TRANSFORM,
    "target_transform": "give the labels as they are wanted, in the table",
    "validation_split": DONE_BY_SPLIT,
    "subset": DONE_BY_SPLIT,
    "train": DONE_BY_SPLIT,
    "validate_filenames": "leave it out: a warning says if none of the first files is there, and Loader(on_error=) what "
    "becomes of samples that cannot be read",
    "keep_aspect_ratio": "resize='crop' keeps proportions",
    "crop_to_aspect_ratio": "resize='crop' keeps proportions",
    "pad_to_aspect_ratio": "resize='crop' keeps proportions, and cuts; padding would be the work of a function "
    "load(index, rng, out)",
    "data_format": "leave it out: images are (height, width, channels); in torch, image.permute(0, 3, 1, 2)",
    "antialias": "interpolation='auto' does that",
    "loader": "leave it out: images are told by their content; other files are read by a function load(index, rng, out)",
    "extensions": "leave it out: images are told by their content",
    "is_valid_file": "make a table of the files that are wanted: ringload.ImageFrame(df, ...)",
    "save_to_dir": "leave it out: nothing is written",
}
ADAPTERS = {  # of Keras' fit, tf.data and torch
    "inputs": "x",
    "targets": "y",
    "class_weight": "class_weight= is fit's; or sample_weight=, a field",
    "features": "x",
    "labels": "y",
    "drop_remainder": LOADER["drop_remainder"],
    "pin_memory": "pin",
    "non_blocking": "leave it out: copies run beside the step",
    "sharding": "device",
}
TORCH_DATALOADER = {  # of ringload.Loader
    "source": "dataset",
    "workers": "num_workers",
    "last": "drop_last=True leaves out samples that do not fill a batch, drop_last=False keeps them",
    "seed": "generator=torch.Generator().manual_seed(seed) does that",
    "start_method": "multiprocessing_context",
    "stall_timeout": "timeout",
    "worker_setup": "worker_init_fn",
    "shard": "sampler=torch.utils.data.DistributedSampler(dataset) does that",
    "on_error": "leave it out: an error is raised in place of its batch, and the iteration may go on",
    "copy": "leave it out: batches are in memory of their own",
    "epochs": "leave it out: each `for` over the loader is one epoch",
    "device": "copy each batch with .to(device, non_blocking=True); pin_memory=True makes that faster",
}
SET_LATER = {  # attribute -> what does what people set it for
    "epoch": "loader.set_epoch(epoch) goes to another epoch",
    "position": "loader.load_state_dict(state) goes to another batch",
    "order": "make a new Loader; source.subset(indices) with shuffle=False gives an order of your own",
    "rows": "source.subset(indices) gives a source of some of the rows",
    "labels": "change the table, and make a new source of it",
    "augmentation": "make a new one with other arguments; source.plain() has none",
}
VALUES = {  # argument -> value of another library -> what it is here
    "label_mode": {"sparse": "'int'", "raw": "'float'", "other": "'float'", "multi_output": "label={name: column, ...}"},
    "color": {"grayscale": "'gray'", "grey": "'gray'", "l": "'gray'", "bgr": "'rgb', and image[..., ::-1]"},
    "interpolation": {"bilinear": "'antialias', as Pillow's and torchvision's; 'linear', as OpenCV's", "bicubic": "'cubic'"},
    "resize": {"random_resized_crop": "'random_crop'", "center_crop": "'crop'"},
    "dtype": {"float": "'float32'", "float16": "'uint8' (make it float16 on the device)", "float64": "'float32'"},
    "on_error": {"ignore": "'skip'", "warn": "'skip'"},
    "last": {"truncate": "'drop'", "partial": "'keep'"},
    "how": {"stratified": "'stratify'", "groups": "'group'"},
}
SPLIT = {  # of scikit-learn's train_test_split
    "test_size": "fraction",
    "validation_split": "fraction",
    "val_size": "fraction",
    "train_size": "fraction= is that of the second part: 0.2 leaves 0.8 for the first",
    "random_state": "seed",
    "stratify": "by= names the column, how='stratify' is the default",
    "groups": "by= names the column, with how='group'",
    "shuffle": "leave it out: samples are drawn at random, and keep the table's order in each part",
}
FOLDS = {**SPLIT, "n_splits": "k", "n_folds": "k", "folds": "k"}
MIX = {  # of datasets.interleave_datasets, tf.data, WebDataset and MosaicML's Streams
    "datasets": "sources",
    "probabilities": "weights",
    "probs": "weights",
    "proportions": "weights",
    "stopping_strategy": "stop",
    "stop_on_empty_dataset": "stop",
    "longest": "stop='longest' goes through every source before an epoch ends",
    "shuffle": "it is an argument of ringload.Loader: shuffle=False keeps the order of each source",
    "fill": "missing",
    "fill_value": "missing",
}
TABLES = {
    "ImageFrame.split": SPLIT,
    "ImageFrame.folds": FOLDS,
    "Mixed.split": SPLIT,
    "Mixed.folds": FOLDS,
    "split": SPLIT,
    "folds": FOLDS,
    "mix": MIX,
    "Loader": LOADER,
    "ImageFrame": IMAGES,
    "ImageFolder": IMAGES,
    "TarShards": IMAGES,
    "generator_from_df": {**LOADER, **IMAGES, "size": "target_size"},
    "DataLoader": TORCH_DATALOADER,
}


def of_argument(function: str, name: str, known: Collection[str]) -> str:
    """What is said of an argument that a function of ringload's, which has those that are `known`, has not."""
    if found := _of_table(TABLES.get(function, ADAPTERS), name, known):
        return found
    images = "ringload.ImageFrame" if function in ("ImageFolder", "TarShards") else "ringload.ImageFrame and ImageFolder"
    for home, table, own in (("ringload.Loader", LOADER, OWN_OF_LOADER), (images, IMAGES, OWN_OF_IMAGES)):
        if name in own:
            return f"it is an argument of {home}"
        if said := table.get(name, ""):
            return f"it is for {home}, where it is called {said}=" if said in own else f"it is for {home}: {said}"
    return nearest(name, known).removeprefix("; ") or f"it has {', '.join(known)}"


def _of_table(table: dict[str, str], name: str, known: Collection[str]) -> str:
    """What a table says of a name; "" if nothing, or if those that are `known` lack what it says."""
    said = table.get(name, "")
    if not said.isidentifier():
        return said
    return f"here it is called {said}=" if said in known else ""


def of_value(argument: str, value: Any) -> str:
    """What is said of a value that people know from another library; else ""."""
    known = VALUES.get(argument, {}).get(value.lower(), "") if isinstance(value, str) else ""
    return f"; what others call {value!r} is {known}" if known else ""


def of_attribute(owner: str, name: str, value: Any, arguments: Collection[str]) -> str:
    """What is said when an attribute is set that is fixed once its owner, of this class, was made with its `arguments`."""
    start = f"{owner}.{name} cannot be set, since the object stays what it was made: "
    if name in SET_LATER:
        return start + SET_LATER[name]
    return f"{start}make a new one, {owner}(..., {name}={short(value)})" if name in arguments else f"{start}make a new one"


# -- sources ----------------------------------------------------------------------------------------------------------

ARRAYS = "ringload.Loader(ringload.Arrays(x=..., y=...), batch_size)"
TORCH = "ringload.torch.DataLoader(dataset, batch_size=...)"
FUNCTION = "a function load(index, rng, out), with fields= and n_samples="


def of_source(value: Any) -> str:
    """How samples come to the loader out of an object that is no source."""
    ancestors = {(one.__module__.partition(".")[0], one.__name__) for one in type(value).__mro__}
    library, kind = type(value).__module__.partition(".")[0], type(value).__name__
    if isinstance(value, type):
        return f"it is a class: make an object of it, {value.__name__}(...)"
    if isinstance(value, str | bytes) or hasattr(value, "__fspath__"):
        return (
            "it is a path: for a folder of images by class ringload.ImageFolder(path, size=...), for a table of image files "
            "ringload.ImageFrame(path, label=..., size=...)"
        )
    if hasattr(value, "keys") and library == "h5py":
        return "use ringload.Arrays(x=file['x'], y=file['y'][:]), one field an argument"
    if library == "ringload" and kind != "DataLoader":
        return "it gives the batches of a loader already: give loader itself, or loader.source for another one"
    if ("torch", "DataLoader") in ancestors:
        return f"it is a DataLoader: give its dataset to ringload's, {TORCH}, which takes the same arguments"
    if ("torch", "IterableDataset") in ancestors or ("datasets", "IterableDataset") in ancestors:
        return f"it gives samples in its own order, and the loader asks for them by index: use {FUNCTION}"
    if ("torch", "Dataset") in ancestors:
        return f"use {TORCH}, or write {FUNCTION}"
    if ("datasets", "Dataset") in ancestors:
        return f"use ringload.from_huggingface(dataset, ...), or {TORCH} with dataset.with_format('torch'), or write {FUNCTION}"
    if library == "datasets":
        return f"it is several datasets by name: take one, {kind}['train'], say, for {TORCH}"
    if library == "tensorflow" and "Dataset" in kind:
        return f"a tf.data pipeline gives samples in its own order: use what it reads from, by {FUNCTION}"
    if "PyDataset" in {name for _, name in ancestors} or "Sequence" in {n for lib, n in ancestors if lib == "keras"}:
        return f"it makes whole batches, and the loader asks for samples: use {FUNCTION}"
    if hasattr(value, "columns") and hasattr(value, "dtypes" if library == "pandas" else "to_pandas"):
        frame = "df" if library == "pandas" else "df.to_pandas()"
        return (
            f"for a table of image files use ringload.ImageFrame({frame}, path=..., label=..., size=...); for columns of "
            "numbers ringload.Arrays(x=df[[...]].to_numpy(), y=...)"
        )
    if _is_array(value):
        return f"use {ARRAYS}, one field an argument"
    if isinstance(value, tuple | list) and value and all(map(_is_array, value)):
        return f"use {ARRAYS}, one field an argument"
    if isinstance(value, dict) and value and all(map(_is_array, value.values())):
        return "use ringload.Arrays(**arrays), one field an argument"
    if hasattr(value, "__next__"):
        return f"it gives samples in its own order, and the loader asks for them by index: use {FUNCTION}"
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        return f"for samples by index, dataset[i], use {TORCH}; for arrays {ARRAYS}; or write {FUNCTION}"
    return "give ringload.ImageFrame, ImageFolder or Arrays, an object with fields, __len__ and load, or " + FUNCTION


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")
