"""Every method once more, in numpy float64, written from the papers: slow, plain loops to check by eye.

The tests compare whole trajectories of the library with these twins. Nothing here imports `lowland`, except
`drive`, which runs the library's own engine on the twins' problems.
"""
