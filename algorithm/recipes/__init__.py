"""Training by recipe on a GPU or CPU: batches, any optimiser and schedule of timm, augmentation, moving average, mixed
precision, many processes, update plans, distillation; checkpoints that a killed run goes on from bit for bit.

The device's own training (batch 1, SGD) is `algorithm.training`; what is recorded and drawn meanwhile, `algorithm.monitor`.
"""
