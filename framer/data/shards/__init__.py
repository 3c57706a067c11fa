"""Training pairs made beforehand: tar files in WebDataset's layout, and the manifest that describes them."""
