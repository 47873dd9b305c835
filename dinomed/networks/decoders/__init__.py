"""Decoders: from a list of feature maps and the image to a dense feature map."""
