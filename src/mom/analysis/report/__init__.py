"""``report.html``: one page for a browser, self-contained, with the token path viewer."""
