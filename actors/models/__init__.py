"""Local models: settings, back ends, batching, bundled heads and their training."""
