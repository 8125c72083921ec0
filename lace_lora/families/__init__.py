"""All that differs between base models, one file each, the same few plain functions in every file.

Words shared by these files (B batch, C latent channels, H,W latent cells, L tokens, D text width, P pooled width) are
explained at the top of each. A new base model is a new file with the functions of sdxl.py.
"""
