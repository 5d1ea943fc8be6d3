"""``report.html``: a self-contained page with the token path viewer."""
