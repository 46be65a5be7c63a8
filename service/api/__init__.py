"""The routes: the native API, the read side of a model hub, data sets, estimates, the pages, the API's description."""
