"""The audit of a controller: is its recording true, why did it act, what can it never do, what if the world is off."""
