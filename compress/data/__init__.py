"""The training side of the data: loaders, augmentation, images without labels."""
