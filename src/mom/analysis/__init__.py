"""Analysis of a trained model: routing traces of a text, module similarity and ablation, tables, and a report."""
