"""``convnn demo``: eight small networks from convolution to attention, trained on handwritten digits, and their report.

Importing this package is cheap: Lightning, timm and matplotlib are imported by the modules that use them.
"""
