"""llama.cpp's own HTTP server on loopback, run as a process: GGUF. It prints its address."""

import sys
import threading

import xllamacpp

if __name__ == "__main__":
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel = 8192, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.port = 0  # any that is free; it listens on loopback
    params.n_gpu_layers = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()
