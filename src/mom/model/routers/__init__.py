"""Router kinds, one per file; importing this package registers them, without loading PyTorch."""

from mom.model.routers.embedding import Embedding
from mom.model.routers.gru import GRU
from mom.model.routers.kind import RouterKind
from mom.model.routers.linear import Linear
from mom.model.routers.mlp import MLP
from mom.model.routers.oracle import Oracle
from mom.model.routers.random import Random
from mom.model.routers.sequential import Sequential

__all__ = ["GRU", "MLP", "Embedding", "Linear", "Oracle", "Random", "RouterKind", "Sequential"]
