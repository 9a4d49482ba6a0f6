class ConvertError(ValueError):
    """The model cannot be converted as asked; the message names the places and what to do."""
