"""Lane keeping: a car on a winding road, seen by its errors or through a camera, alone or in a batch."""
