"""What only images need: data sets."""
