"""Providers around a Provider: each adds one promise to a call, one file each; `wire` stacks them."""
