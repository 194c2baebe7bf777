"""What other libraries see of aks: PyTorch ops, modules and the patching of models."""
