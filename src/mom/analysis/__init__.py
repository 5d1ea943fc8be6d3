"""Routing traces of a text, module similarity and ablation, tables, and the report; import its modules one by one."""
