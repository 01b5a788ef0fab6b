"""Labels of features: asked for, tested on contexts that their maker has not seen, imported, compared."""
