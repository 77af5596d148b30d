"""The decoder, its layers, and its way from and to Hugging Face folders."""
