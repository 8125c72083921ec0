"""Lace LoRA: photographs of lace in, a LoRA for Stable Diffusion XL and new, refined designs out.

Importing this package loads no torch; the rooms (lace_lora.config, lace_lora.train, …) are imported one by one.
"""

__version__ = "0.1.0"
