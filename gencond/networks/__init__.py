"""The small networks of the condensation literature: each has `features(images)`, `classifier`, `feature_dim`."""
