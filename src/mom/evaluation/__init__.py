"""Measuring a trained model: language modeling, GLUE, XSum and the evaluation harness."""
