"""The cost of a model, estimated and measured: parameters, depth, FLOPs, and memory."""
