"""An HTTP server of a test, on this machine."""

import contextlib
import threading
from http.server import ThreadingHTTPServer


@contextlib.contextmanager
def served(handler):
    """The address of a running server whose requests the class `handler` answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
