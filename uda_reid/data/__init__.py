"""From folders of crops to images by row: layouts, photographs, sampling, built-in scenes."""
