"""The model room: travels with its weights, so it imports only itself."""
