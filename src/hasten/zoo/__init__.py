"""The bundled models: the scenes they were trained on, the recipe, and the weights."""
