"""lowland beside trajectories that released code computed: see README.md in this folder."""
