"""mechprobe: did quantization break this model's refusals, and where inside did it break?

Importing this package is cheap: torch and transformers load when a name that needs them is used.
"""

__version__ = "0.1.0.dev0"
