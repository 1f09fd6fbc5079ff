"""The process of the driver."""

from sgm.cluster.driver import serve

if __name__ == "__main__":
    serve()
