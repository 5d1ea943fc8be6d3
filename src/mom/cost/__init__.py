"""What a model costs: parameters, depth, FLOPs and memory, estimated and measured."""
