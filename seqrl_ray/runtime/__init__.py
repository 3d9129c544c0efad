"""The Ray room: the local loop's objects, spread over processes and watched over."""
