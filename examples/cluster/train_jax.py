"""Data parallel training of a packed model with the matrix cut by rows, on one machine or many.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/cluster/train_jax.py
python examples/cluster/train_jax.py --distributed        on every machine of a cluster that JAX knows (SLURM, TPU, ...)
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskedlinear_jax import PackedLinear, columns, combine, partition, rows

STEPS, BATCH = 20, 128


def main():
    """Train; every device has its own part of each batch."""
    if "--distributed" in sys.argv:
        jax.distributed.initialize()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere, by_batch = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    model = [
        PackedLinear(32, 64, grad_mask=columns(range(4)), seed=0),
        PackedLinear(64, 1, grad_mask=rows([0]), seed=1),
    ]
    model = jax.device_put(model, everywhere)
    # The constant matrix is cut by rows: each device holds and multiplies its own.
    model[0] = model[0].replace(base_bits=jax.device_put(model[0].base_bits, NamedSharding(mesh, P("data", None))))
    params, rest = partition(model)
    optimizer = optax.adamw(0.01)
    state = optimizer.init(params)

    def loss(params, x):
        first, second = combine(params, rest)
        return jnp.square(second(jax.nn.relu(first(x))) - x[:, :1]).mean()

    @jax.jit
    def step(params, state, x):
        value, grads = jax.value_and_grad(loss)(params, x)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    draw = np.random.default_rng(1)
    for number in range(STEPS):
        batch = draw.standard_normal((BATCH, 32)).astype(np.float32)
        x = jax.make_array_from_callback(batch.shape, by_batch, lambda index, batch=batch: batch[index])
        # One step at a time: host devices share the CPU's few threads, and a collective that waits holds one.
        params, state, value = jax.block_until_ready(step(params, state, x))
        if jax.process_index() == 0 and number % 5 == 4:
            print(f"step {number + 1}: loss {float(value):.3f}", flush=True)


if __name__ == "__main__":
    main()
