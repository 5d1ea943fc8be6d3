"""Examples of different lengths as padded batches, in a seeded order."""

from __future__ import annotations

import pytest

from mom.config import GlueConfig
from mom.data.examples import pad
from mom.data.glue import GlueDataModule
from mom.errors import UsageError
from tests.helpers.checkpoints import small_tokenizer
from tests.helpers.glue_files import write_glue


def module(folder, name: str = "rte", **changes) -> GlueDataModule:
    options = {"sequence_length": 64, "batch_size": 2, **changes}
    return GlueDataModule(GlueConfig(name=name, path=str(folder), **options), 1, small_tokenizer())


def test_batches_are_padded_where_the_mask_says(tmp_path):
    write_glue(tmp_path, "rte")
    data = module(tmp_path)
    (loader,) = data.val_dataloader()
    batches = list(loader)

    assert [len(batch["labels"]) for batch in batches] == [2, 2]
    for batch, rows in zip(
        batches, (data.splits["validation"][:2], data.splits["validation"][2:]), strict=True
    ):
        for ids, mask, (row, _) in zip(batch["input_ids"], batch["attention_mask"], rows, strict=True):
            assert ids[mask.bool()].tolist() == row
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
    assert "labels" not in next(iter(data.full_dataloader("test")))


def test_padding_on_either_side():
    assert pad([[1], [2, 3]], 0)["input_ids"].tolist() == [[1, 0], [2, 3]]
    left = pad([[1], [2, 3]], 0, left=True)
    assert left["input_ids"].tolist() == [[0, 1], [2, 3]]
    assert left["attention_mask"].tolist() == [[0, 1], [1, 1]]


def test_the_order_follows_the_seed_and_drops_the_incomplete_batch(tmp_path):
    write_glue(tmp_path, "rte", {"train": 7, "dev": 2})
    seen = [row.tolist() for batch in module(tmp_path).train_dataloader() for row in batch["input_ids"]]
    again = [row.tolist() for batch in module(tmp_path).train_dataloader() for row in batch["input_ids"]]

    assert len(seen) == 6
    assert seen == again


def test_a_batch_larger_than_the_data_is_rejected(tmp_path):
    write_glue(tmp_path, "rte")
    with pytest.raises(
        UsageError, match=r"^data.batch_size=7 on 1 process needs 7 training rows, but the data has 6"
    ):
        module(tmp_path, batch_size=7)
