"""Methods on meshes of up to thousands of devices, as a record for the page of ``lowland simulate``."""
