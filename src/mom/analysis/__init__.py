"""What routing records say: traces, figures, reports. Imported piece by piece, since its parts are heavy."""
