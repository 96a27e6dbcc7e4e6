"""Exported programs as classifiers, and exports of our own: ``.pt2`` and ONNX."""
