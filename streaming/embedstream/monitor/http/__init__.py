"""What a driver serves over HTTP.

`app` has the routes, `gate` decides who may use them, `server` runs the application in a thread,
and `site` puts the metrics, the health and the page of one source together.
"""
