"""Networks for dense prediction: backbones, adapter, decoders, segmenter. They know nothing of medicine."""
