/* The paper's networks, trained in the browser: the same computation as kbe_lib.py, in double precision.

   A classic script, so that it also loads from a file; everything is in `kbeLab`, nothing touches the page (that is
   kbe_lab_page.js).  A network here is one network with its own data; an ensemble is an array of them.

   Two exact reductions make a step cheap (the page "Why it is fast" explains them).  Labels are 0 or 1, so the points
   enter through two counts per distinct string.  And a unit of layer l has seen 2 l + 1 bits at most, so units with
   equal inputs are computed once.  */
"use strict";

globalThis.kbeLab = (() => {
  const LAYERS = 3;
  const TAPS = 3; // kernel size
  const JUMP = 0.25; // a network has failed once an epoch moves one of its outputs by more (kbe_lib.JUMP)

  // ------------------------------------------------------------------------------------------------ random numbers

  /* xoshiro128** (Blackman and Vigna), its state filled by splitmix32 from the given whole numbers.  Returns a
     function that draws 32 random bits. */
  function generator(...words) {
    let mixed = 0;
    const mix = (word) => {
      mixed = (mixed + word + 0x9e3779b9) | 0;
      let t = mixed ^ (mixed >>> 16);
      t = Math.imul(t, 0x21f0aaad);
      t = Math.imul(t ^ (t >>> 15), 0x735a2d97);
      return (t ^ (t >>> 15)) >>> 0;
    };
    for (const word of words) mixed = mix(word);
    let [a, b, c, d] = [mix(0), mix(0), mix(0), mix(0)];
    return () => {
      const x = Math.imul(b, 5);
      const result = Math.imul((x << 7) | (x >>> 25), 9) >>> 0;
      const shifted = b << 9;
      c ^= a;
      d ^= b;
      b ^= c;
      a ^= d;
      c ^= shifted;
      d = (d << 11) | (d >>> 21);
      return result;
    };
  }

  /* A double in [0, 1) from 53 random bits. */
  const uniform = (random) => ((random() >>> 5) * 67108864 + (random() >>> 6)) / 9007199254740992;

  // -------------------------------------------------------------------------------------------------- data, weights

  /* N random strings of b bits with fair-coin labels, drawn with replacement (kbe_lib.random_bit_encoding).
     Returns { bits, x, y }: x is a Uint8Array (N, b), y a Uint8Array (N).  A longer draw begins with the shorter one. */
  function drawData(nPoints, bits, random) {
    const x = new Uint8Array(nPoints * bits), y = new Uint8Array(nPoints);
    for (let i = 0; i < nPoints; i++) {
      const string = random();
      for (let p = 0; p < bits; p++) x[i * bits + p] = (string >>> (31 - p)) & 1;
      y[i] = random() >>> 31;
    }
    return { bits, x, y };
  }

  /* Names and shapes of a network's parameters, in the order in which they lie in theta; theta is a Float64Array. */
  function parameterShapes(bits, channels) {
    const shapes = [];
    for (let layer = 1; layer <= LAYERS; layer++) {
      shapes.push([`conv${layer}.weight`, [channels, layer === 1 ? 1 : channels, TAPS]], [`conv${layer}.bias`, [channels]]);
    }
    for (const head of ["mu", "sigma"]) shapes.push([`${head}.weight`, [1, channels * bits]], [`${head}.bias`, [1]]);
    return shapes;
  }

  const size = (shape) => shape.reduce((product, n) => product * n, 1);

  /* Weights and biases uniform in +-1/sqrt(fan-in), PyTorch's default (kbe_lib.init_networks). */
  function drawWeights(bits, channels, random) {
    const theta = [];
    let bound = 0;
    for (const [name, shape] of parameterShapes(bits, channels)) {
      if (name.endsWith(".weight")) bound = 1 / Math.sqrt(size(shape.slice(1)));
      for (let k = size(shape); k > 0; k--) theta.push(bound * (2 * uniform(random) - 1));
    }
    return Float64Array.from(theta);
  }

  // --------------------------------------------------------------------------------------------- readouts and losses

  const elu = (z) => (z > 0 ? z : Math.expm1(z));
  const eluSlope = (z) => (z > 0 ? 1 : Math.exp(z));
  // log(1 + e^z); linear above 20, as PyTorch has it
  const softplus = (z) => (z > 20 ? z : Math.log1p(Math.exp(z)));
  const sigmoid = (z) => (z < 0 ? Math.exp(z) / (1 + Math.exp(z)) : 1 / (1 + Math.exp(-z)));
  const softplusSlope = (z) => (z > 20 ? 1 : sigmoid(z));

  /* What turns a head's logit z into an output R(z): the value, its derivative, log|R| and the derivative of that.
     The last two come from z where that is possible: a sigma of 1e-320 is still a number there. */
  const READOUTS = {
    raw: { value: (z) => z, slope: () => 1, log: (z) => Math.log(Math.abs(z)), logSlope: (z) => 1 / z },
    elu: { value: elu, slope: eluSlope, log: (z) => Math.log(Math.abs(elu(z))), logSlope: (z) => eluSlope(z) / elu(z) },
    "elu+1": {
      value: (z) => (z < 0 ? Math.exp(z) : z + 1),
      slope: (z) => (z < 0 ? Math.exp(z) : 1),
      log: (z) => (z < 0 ? z : Math.log1p(z)),
      logSlope: (z) => (z < 0 ? 1 : 1 / (z + 1)),
    },
    softplus: {
      value: softplus,
      slope: softplusSlope,
      log: (z) => Math.log(softplus(z)),
      logSlope: (z) => softplusSlope(z) / softplus(z),
    },
    exp: { value: Math.exp, slope: Math.exp, log: (z) => z, logSlope: () => 1 },
    sigmoid: {
      value: sigmoid,
      slope: (z) => sigmoid(z) * (1 - sigmoid(z)),
      log: (z) => (z < 0 ? z - Math.log1p(Math.exp(z)) : -Math.log1p(Math.exp(-z))),
      logSlope: (z) => sigmoid(-z), // 1 - sigma, without the difference
    },
  };

  /* A readout with a floor under it: sigma^2 = R(z)^2 + floor^2. */
  function withFloor({ value, slope }, floor) {
    const floored = (z) => Math.sqrt(value(z) ** 2 + floor ** 2);
    return {
      value: floored,
      slope: (z) => (value(z) * slope(z)) / floored(z),
      log: (z) => Math.log(floored(z)),
      logSlope: (z) => (value(z) * slope(z)) / floored(z) ** 2,
    };
  }

  const NU = 3; // degrees of freedom of Student's t
  const gaussian = { rho: (u) => 0.5 * u * u + 0.5 * Math.log(2 * Math.PI), slope: (u) => u };

  /* Losses per point, log|sigma| + rho(u) with u = (mu - y) / sigma: rho and its derivative.  `beta`: multiplied by
     |sigma|^(2 beta), which has no gradient (beta-NLL).  `printed`: sigma stands in place of log|sigma|. */
  const LOSSES = {
    gaussian,
    laplace: { rho: (u) => Math.abs(u) + Math.LN2, slope: Math.sign },
    student_t: {
      rho: (u) => 0.5 * (NU + 1) * Math.log1p((u * u) / NU) + Math.log((Math.PI * Math.sqrt(NU)) / 2),
      slope: (u) => ((NU + 1) * u) / (NU + u * u),
    },
    "beta-0.5": { ...gaussian, beta: 0.5 },
    "beta-1": { ...gaussian, beta: 1 },
    printed: { rho: (u) => 0.5 * u * u, slope: (u) => u, printed: true },
  };

  /* What is minimised and how, from settings { lr, mu, sigma, loss, remedy, floor, clip, slow }. */
  function makeObjective({ lr, mu, sigma, loss, remedy, floor, clip, slow }) {
    return {
      readMu: READOUTS[mu],
      readSigma: remedy === "floor" ? withFloor(READOUTS[sigma], floor) : READOUTS[sigma],
      loss: LOSSES[loss],
      step: remedy === "slow" ? lr / slow : lr,
      clip: remedy === "clip" ? clip : Infinity,
    };
  }

  /* The factor of beta-NLL at one point, 1 for the other losses. */
  const pointWeight = ({ readSigma, loss }, zSigma) => (loss.beta ? Math.abs(readSigma.value(zSigma)) ** (2 * loss.beta) : 1);

  /* Loss of one point with label y at the logits (zMu, zSigma). */
  function pointLoss(objective, zMu, zSigma, y) {
    const { readMu, readSigma, loss } = objective, sigma = readSigma.value(zSigma);
    const first = loss.printed ? sigma : readSigma.log(zSigma);
    return pointWeight(objective, zSigma) * (first + loss.rho((readMu.value(zMu) - y) / sigma));
  }

  /* Derivatives of `weight` times one point's loss by its two logits, into out[0] and out[1]. */
  function pointGradient({ readMu, readSigma, loss }, zMu, zSigma, y, weight, out) {
    const sigma = readSigma.value(zSigma), u = (readMu.value(zMu) - y) / sigma, slope = loss.slope(u);
    out[0] = ((weight * slope) / sigma) * readMu.slope(zMu);
    out[1] = weight * ((loss.printed ? sigma : 1) - u * slope) * readSigma.logSlope(zSigma);
  }

  // ------------------------------------------------------------------------------------------------------ one network

  /* Who feeds whom: every distinct unit of every layer once.  Units are numbered through all layers; layer 0 holds the
     bits, and unit 0 is a bit 0 as well as the zero padding at the ends of a string. */
  function makePlan(strings, bits) {
    const nStrings = strings.length / bits;
    const taps = [0, 0, 0, 0, 0, 0]; // of the units 0 and 1, which nobody feeds
    const first = [0, 2]; // units of layer l are first[l] ... first[l + 1] - 1
    const unitsOf = [Int32Array.from(strings)]; // per layer (S, b): which unit a position of a string is
    for (let layer = 1; layer <= LAYERS; layer++) {
      const below = unitsOf[layer - 1], units = new Int32Array(nStrings * bits), known = new Map();
      const base = first[layer], span = first[layer] + 1;
      for (let at = 0; at < units.length; at++) {
        const p = at % bits;
        const left = p > 0 ? below[at - 1] : 0, right = p < bits - 1 ? below[at + 1] : 0;
        const key = (left * span + below[at]) * span + right;
        if (!known.has(key)) {
          known.set(key, base + known.size);
          taps.push(left, below[at], right);
        }
        units[at] = known.get(key);
      }
      unitsOf.push(units);
      first.push(base + known.size);
    }
    return { taps: Int32Array.from(taps), first, unitsOf };
  }

  /* The distinct strings of a data set: { strings (S, b), counts (S, 2) of the labels 0 and 1, stringOf (N) }. */
  function countStrings({ bits, x, y }) {
    const known = new Map(), strings = [], stringOf = new Int32Array(y.length), counts = [];
    for (let i = 0; i < y.length; i++) {
      const string = x.subarray(i * bits, (i + 1) * bits), key = string.join("");
      if (!known.has(key)) {
        known.set(key, known.size);
        strings.push(...string);
        counts.push(0, 0);
      }
      stringOf[i] = known.get(key);
      counts[2 * stringOf[i] + y[i]] += 1;
    }
    return { strings: Uint8Array.from(strings), counts: Float64Array.from(counts), stringOf };
  }

  /* What a unit sees, as its weights are ordered: window[i * TAPS + k] is channel i at tap k. */
  function gather(window, h, taps, unit, inputs, C) {
    for (let k = 0; k < TAPS; k++) {
      const below = taps[unit * TAPS + k] * C;
      for (let i = 0; i < inputs; i++) window[i * TAPS + k] = h[below + i];
    }
  }

  /* One network on its own data: three convolutions of kernel size 3 with zero padding, ELU after each, and one linear
     head for mu and one for sigma (eqs 6, 7, 9-11), trained by plain gradient descent on the mean loss.

     `epoch` counts steps.  `failedAt` is the first epoch that moved an output by more than JUMP or made the state
     infinite, `frozenAt` the epoch from which the state was not finite any more; Infinity: never.  A frozen network
     keeps its last finite state. */
  class Network {
    constructor(theta, data, channels, objective) {
      this.theta = Float64Array.from(theta);
      this.data = data;
      this.channels = channels;
      this.objective = objective;
      this.epoch = 0;
      this.failedAt = this.frozenAt = Infinity;
      Object.assign(this, countStrings(data));
      this.plan = makePlan(this.strings, data.bits);
      const units = this.plan.taps.length / TAPS, nStrings = this.strings.length / data.bits;
      this.h = new Float64Array(units * channels); // outputs of the units, (units, C); a bit has one number only
      this.h[channels] = 1; // unit 1 is the bit 1
      this.slope = new Float64Array(units * channels); // ELU'(z)
      this.dh = new Float64Array(units * channels);
      this.window = new Float64Array(TAPS * channels);
      this.dWindow = new Float64Array(TAPS * channels);
      this.z = new Float64Array(2 * nStrings); // logits (S, 2)
      this.outputs = new Float64Array(2 * nStrings); // mu and sigma (S, 2)
      this.last = { theta: this.theta.slice(), outputs: this.outputs.slice() };
      this.gradient = new Float64Array(this.theta.length);
      this.offsets = [0]; // where weights begin: of the layers, then of the two heads
      for (let layer = 1; layer <= LAYERS; layer++) {
        this.offsets.push(this.offsets[layer - 1] + channels * ((layer === 1 ? 1 : channels) * TAPS + 1));
      }
      this.offsets.push(this.offsets[LAYERS] + channels * data.bits + 1);
      this.forward();
    }

    /* Logits and outputs of the present weights. */
    forward() {
      const { theta, h, slope, window, channels: C, offsets, data: { bits } } = this;
      const { taps, first, unitsOf } = this.plan;
      for (let layer = 1; layer <= LAYERS; layer++) {
        const inputs = layer === 1 ? 1 : C, fan = inputs * TAPS, w = offsets[layer - 1], bias = w + C * fan;
        for (let unit = first[layer]; unit < first[layer + 1]; unit++) {
          gather(window, h, taps, unit, inputs, C);
          for (let c = 0; c < C; c++) {
            let z = theta[bias + c];
            for (let j = 0, at = w + c * fan; j < fan; j++, at++) z += theta[at] * window[j];
            // The derivative is exp(z), taken from z: output + 1 would be 0 at saturation, where a tiny slope meets a
            // huge gradient.  exp(z) - 1 is off by 1e-16 of 1, which is what the sums below carry anyway.
            const e = z > 0 ? 1 : Math.exp(z);
            slope[unit * C + c] = e;
            h[unit * C + c] = z > 0 ? z : e - 1;
          }
        }
      }
      const top = unitsOf[LAYERS], [mu, sigma] = offsets.slice(LAYERS), inputs = C * bits;
      for (let s = 0; s < this.z.length / 2; s++) {
        let zMu = theta[mu + inputs], zSigma = theta[sigma + inputs];
        for (let p = 0; p < bits; p++) {
          const unit = top[s * bits + p] * C;
          for (let c = 0; c < C; c++) {
            zMu += theta[mu + c * bits + p] * h[unit + c];
            zSigma += theta[sigma + c * bits + p] * h[unit + c];
          }
        }
        this.z[2 * s] = zMu;
        this.z[2 * s + 1] = zSigma;
        this.outputs[2 * s] = this.objective.readMu.value(zMu);
        this.outputs[2 * s + 1] = this.objective.readSigma.value(zSigma);
      }
    }

    /* Gradient of the mean loss at the present weights, into this.gradient. */
    backward() {
      const { theta, h, slope, window, dWindow, dh, gradient, counts, channels: C, offsets, data: { bits, y } } = this;
      const { taps, first, unitsOf } = this.plan;
      const top = unitsOf[LAYERS], [mu, sigma] = offsets.slice(LAYERS), inputs = C * bits, point = [0, 0];
      gradient.fill(0);
      dh.fill(0);
      for (let s = 0; s < this.z.length / 2; s++) {
        let dMu = 0, dSigma = 0;
        for (let label = 0; label < 2; label++) {
          const share = counts[2 * s + label] / y.length;
          if (share === 0) continue;
          const zMu = this.z[2 * s], zSigma = this.z[2 * s + 1];
          pointGradient(this.objective, zMu, zSigma, label, pointWeight(this.objective, zSigma), point);
          dMu += share * point[0];
          dSigma += share * point[1];
        }
        gradient[mu + inputs] += dMu;
        gradient[sigma + inputs] += dSigma;
        for (let p = 0; p < bits; p++) {
          const unit = top[s * bits + p] * C;
          for (let c = 0; c < C; c++) {
            const at = c * bits + p;
            gradient[mu + at] += dMu * h[unit + c];
            gradient[sigma + at] += dSigma * h[unit + c];
            dh[unit + c] += dMu * theta[mu + at] + dSigma * theta[sigma + at];
          }
        }
      }
      for (let layer = LAYERS; layer >= 1; layer--) {
        const inputs = layer === 1 ? 1 : C, fan = inputs * TAPS, w = offsets[layer - 1], bias = w + C * fan;
        for (let unit = first[layer]; unit < first[layer + 1]; unit++) {
          gather(window, h, taps, unit, inputs, C);
          dWindow.fill(0);
          for (let c = 0; c < C; c++) {
            const dz = dh[unit * C + c] * slope[unit * C + c];
            gradient[bias + c] += dz;
            for (let j = 0, at = w + c * fan; j < fan; j++, at++) {
              gradient[at] += dz * window[j];
              dWindow[j] += dz * theta[at];
            }
          }
          if (layer === 1) continue; // the bits do not learn
          for (let k = 0; k < TAPS; k++) {
            const below = taps[unit * TAPS + k] * C;
            for (let i = 0; i < inputs; i++) dh[below + i] += dWindow[i * TAPS + k];
          }
        }
      }
    }

    /* The step size of this epoch: the learning rate, less where a remedy makes it so; needs backward(). */
    stepSize() {
      const { step, clip } = this.objective;
      if (clip === Infinity) return step;
      let square = 0;
      for (const g of this.gradient) square += g * g;
      return (step * clip) / Math.max(clip, Math.sqrt(square));
    }

    /* One epoch of gradient descent. */
    step() {
      this.epoch += 1;
      if (this.frozenAt < this.epoch) return;
      const { theta, outputs, last, gradient } = this;
      last.theta.set(theta);
      last.outputs.set(outputs);
      this.backward();
      const step = this.stepSize();
      let finite = true, moved = 0;
      for (let k = 0; k < theta.length; k++) {
        theta[k] -= step * gradient[k];
        finite &&= Number.isFinite(theta[k]);
      }
      this.forward();
      for (let k = 0; k < outputs.length; k++) {
        finite &&= Number.isFinite(outputs[k]);
        moved = Math.max(moved, Math.abs(outputs[k] - last.outputs[k]));
      }
      if (this.failedAt === Infinity && !(finite && moved <= JUMP)) this.failedAt = this.epoch;
      if (!finite) {
        this.frozenAt = this.epoch;
        theta.set(last.theta);
        this.forward();
      }
    }

    /* mu and sigma at the N points: { mu, sigma }. */
    pointOutputs() {
      const pick = (head) => Float64Array.from(this.stringOf, (s) => this.outputs[2 * s + head]);
      return { mu: pick(0), sigma: pick(1) };
    }

    /* The two variances of section III.B, { V: <(y - mu)^2>, Vstar: <sigma^2> }. */
    variances() {
      let V = 0, Vstar = 0;
      const { stringOf, outputs, data: { y } } = this;
      for (let i = 0; i < y.length; i++) {
        V += (y[i] - outputs[2 * stringOf[i]]) ** 2;
        Vstar += outputs[2 * stringOf[i] + 1] ** 2;
      }
      return { V: V / y.length, Vstar: Vstar / y.length };
    }

    /* Mean loss over the points. */
    loss() {
      let total = 0;
      this.data.y.forEach((y, i) => {
        const s = this.stringOf[i];
        total += pointLoss(this.objective, this.z[2 * s], this.z[2 * s + 1], y);
      });
      return total / this.data.y.length;
    }

    /* Derivatives of the logits by the weights, (S, 2, P): row 2 s + h is head h at string s. */
    jacobian() {
      const { theta, h, slope, channels: C, offsets, data: { bits } } = this;
      const { unitsOf } = this.plan, P = theta.length, nStrings = this.z.length / 2;
      const J = new Float64Array(2 * nStrings * P);
      let above = new Float64Array(bits * C), below = new Float64Array(bits * C);
      for (let row = 0; row < 2 * nStrings; row++) {
        const s = row >> 1, J0 = row * P, head = offsets[LAYERS + (row & 1)];
        for (let p = 0; p < bits; p++) {
          for (let c = 0; c < C; c++) {
            J[J0 + head + c * bits + p] = h[unitsOf[LAYERS][s * bits + p] * C + c];
            above[p * C + c] = theta[head + c * bits + p];
          }
        }
        J[J0 + head + C * bits] = 1;
        for (let layer = LAYERS; layer >= 1; layer--) {
          const inputs = layer === 1 ? 1 : C, w = offsets[layer - 1], bias = w + C * inputs * TAPS;
          below.fill(0);
          for (let p = 0; p < bits; p++) {
            for (let c = 0; c < C; c++) {
              const dz = above[p * C + c] * slope[unitsOf[layer][s * bits + p] * C + c];
              J[J0 + bias + c] += dz;
              for (let k = Math.max(0, 1 - p); k < Math.min(TAPS, bits + 1 - p); k++) {
                const unit = unitsOf[layer - 1][s * bits + p + k - 1] * C;
                for (let i = 0; i < inputs; i++) {
                  const at = w + (c * inputs + i) * TAPS + k;
                  J[J0 + at] += dz * h[unit + i];
                  below[(p + k - 1) * C + i] += dz * theta[at];
                }
              }
            }
          }
          [above, below] = [below, above];
        }
      }
      return J;
    }
  }

  // ---------------------------------------------------------------------------------- what the theory asks to look at

  /* Largest eigenvalue of a symmetric n x n matrix given by v -> A v (which may reuse its result), by Lanczos.

     24 steps from a fixed start; the eigenvalue of the small tridiagonal matrix by bisection. */
  function largestEigenvalue(n, multiply) {
    const random = generator(1), basis = [], diagonal = [], beside = [];
    let v = Float64Array.from({ length: n }, () => uniform(random) - 0.5);
    let norm = Math.hypot(...v);
    for (let step = 0; step < Math.min(n, 24); step++) {
      v = v.map((value) => value / norm);
      basis.push(v);
      const w = Float64Array.from(multiply(v));
      for (let twice = 0; twice < 2; twice++) {
        basis.forEach((q, j) => {
          let dot = 0;
          for (let k = 0; k < n; k++) dot += q[k] * w[k];
          for (let k = 0; k < n; k++) w[k] -= dot * q[k];
          if (j === step) diagonal[step] = (diagonal[step] ?? 0) + dot;
        });
      }
      norm = 0;
      for (const value of w) norm += value * value;
      norm = Math.sqrt(norm);
      const scale = Math.max(...diagonal.map(Math.abs), ...beside, 1e-300);
      if (!(norm > 1e-12 * scale)) break;
      beside.push(norm);
      v = w;
    }
    const m = diagonal.length, off = (j) => (j < 0 || j >= m - 1 ? 0 : beside[j]);
    const bounds = diagonal.map((d, j) => [d - off(j - 1) - off(j), d + off(j - 1) + off(j)]);
    let low = Math.min(...bounds.map((b) => b[0])), high = Math.max(...bounds.map((b) => b[1]));
    const allBelow = (x) => {
      let d = 1;
      for (let j = 0; j < m; j++) {
        d = diagonal[j] - x - (j > 0 ? off(j - 1) ** 2 / d : 0);
        if (d >= 0) return false;
      }
      return true;
    };
    for (let halving = 0; halving < 60; halving++) {
      const middle = (low + high) / 2;
      if (allBelow(middle)) high = middle;
      else low = middle;
    }
    return (low + high) / 2;
  }

  /* Calls f(s, label, share) for every distinct string with a label; share is its part of the points. */
  function forEachPoint({ counts, data: { y } }, f) {
    for (let k = 0; k < counts.length; k++) if (counts[k] > 0) f(k >> 1, k & 1, counts[k] / y.length);
  }

  /* The step size in use and, per distinct string with a label, the growth rate r and the population x = q / q* of that
     point alone on Ricker's map x' = x exp(r (1 - x)): { eta, r, x } (the chapter on the Ricker map; Gaussian
     likelihood, also with the weight of beta-NLL held fixed). */
  function ricker(network, J = network.jacobian()) {
    const { objective, z, outputs, theta } = network, P = theta.length, r = [], x = [];
    network.backward();
    const eta = network.stepSize();
    forEachPoint(network, (s, label, share) => {
      const error = outputs[2 * s] - label, q = (error / outputs[2 * s + 1]) ** 2;
      let [mm, ms, ss] = [0, 0, 0]; // response of the logits at this point
      for (let p = 0; p < P; p++) {
        const dMu = J[2 * s * P + p], dSigma = J[(2 * s + 1) * P + p];
        mm += dMu * dMu;
        ms += dMu * dSigma;
        ss += dSigma * dSigma;
      }
      // and of ln|e| and ln sigma
      // (an error that has rounded to 0 under a sigmoid: d ln|e| / dz tends to +-1)
      const a = error === 0 ? 1 - 2 * label : objective.readMu.slope(z[2 * s]) / error;
      const b = objective.readSigma.logSlope(z[2 * s + 1]);
      const grow = b * b * ss - a * b * ms;
      r.push(2 * eta * share * pointWeight(objective, z[2 * s + 1]) * grow);
      x.push((q * (a * a * mm + b * b * ss - 2 * a * b * ms)) / grow);
    });
    return { eta, r, x };
  }

  /* Largest eigenvalue of J' H J for a Jacobian (2 S, P) and a 2 x 2 matrix per string, H (S, 2, 2). */
  function largestCurvature(J, H, P) {
    if (!H.every(Number.isFinite) || !J.every(Number.isFinite)) return Infinity;
    const out = new Float64Array(P);
    return largestEigenvalue(P, (v) => {
      out.fill(0);
      for (let s = 0; s < H.length / 4; s++) {
        const mu = 2 * s * P, sigma = mu + P;
        let a = 0, b = 0;
        for (let p = 0; p < P; p++) {
          a += J[mu + p] * v[p];
          b += J[sigma + p] * v[p];
        }
        const c = H[4 * s] * a + H[4 * s + 1] * b, d = H[4 * s + 2] * a + H[4 * s + 3] * b;
        for (let p = 0; p < P; p++) out[p] += c * J[mu + p] + d * J[sigma + p];
      }
      return out;
    });
  }

  /* Where a network stands against the edge of stability (the chapter on collapse): what `ricker` gives, and

     etaS   step size times the largest eigenvalue of the Gauss-Newton curvature of the mean loss; training is unstable
            above 2.  The weight of beta-NLL is held fixed.  A curvature that overflows is Infinity.
     floor  sqrt(eta lambda / 2), lambda the largest eigenvalue of the response of mu over N: the sigma below which the
            step of mu overshoots. */
  function stability(network) {
    const { objective, z, theta } = network, J = network.jacobian();
    const H = new Float64Array(2 * z.length), ofMu = new Float64Array(2 * z.length), [plus, minus, h] = [[0, 0], [0, 0], 1e-5];
    forEachPoint(network, (s, label, share) => {
      const at = [z[2 * s], z[2 * s + 1]], weight = pointWeight(objective, at[1]);
      for (const head of [0, 1]) {
        const step = head === 0 ? [h, 0] : [0, h];
        pointGradient(objective, at[0] + step[0], at[1] + step[1], label, weight, plus);
        pointGradient(objective, at[0] - step[0], at[1] - step[1], label, weight, minus);
        for (const row of [0, 1]) H[4 * s + 2 * row + head] += (share * (plus[row] - minus[row])) / (2 * h);
      }
      ofMu[4 * s] += share * objective.readMu.slope(at[0]) ** 2;
    });
    const points = ricker(network, J), P = theta.length;
    const floor = Math.sqrt((points.eta * largestCurvature(J, ofMu, P)) / 2);
    return { ...points, etaS: points.eta * largestCurvature(J, H, P), floor };
  }

  /* At each distance (S, b + 1) from each string: how many points there are, and how many of them have the label 1. */
  function countNeighbours({ strings, counts, data: { bits } }) {
    const nStrings = strings.length / bits, D = bits + 1;
    const near = new Float64Array(nStrings * D), ones = new Float64Array(nStrings * D);
    for (let s = 0; s < nStrings; s++) {
      for (let t = 0; t < nStrings; t++) {
        let d = 0;
        for (let p = 0; p < bits; p++) d += strings[s * bits + p] ^ strings[t * bits + p];
        near[s * D + d] += counts[2 * t] + counts[2 * t + 1];
        ones[s * D + d] += counts[2 * t + 1];
      }
    }
    return { near, ones };
  }

  const ALPHA_MIN = 0.01, ALPHA_MAX = 16;

  /* The prediction scale of FIG. 4: the alpha whose local average (eq. 20) is nearest to mu in mean square over the
     points; the scan and the golden section of kbe_lib.prediction_scale.  Returns { alpha, misfit }. */
  function predictionScale(network) {
    const { strings, counts, outputs, data: { bits, y } } = network, nStrings = strings.length / bits, D = bits + 1;
    network.neighbours ??= countNeighbours(network);
    const { near, ones } = network.neighbours;
    const weights = new Float64Array(D);
    const misfit = (alpha) => {
      let total = 0;
      for (let d = 0; d < D; d++) weights[d] = Math.exp(-alpha * d);
      for (let s = 0; s < nStrings; s++) {
        let top = 0, bottom = 0;
        for (let d = 0; d < D; d++) {
          top += weights[d] * ones[s * D + d];
          bottom += weights[d] * near[s * D + d];
        }
        total += (counts[2 * s] + counts[2 * s + 1]) * (top / bottom - outputs[2 * s]) ** 2;
      }
      return total / y.length;
    };
    const grid = Array.from({ length: 49 }, (_, k) => ALPHA_MIN * (ALPHA_MAX / ALPHA_MIN) ** (k / 48));
    const scan = grid.map(misfit), best = scan.indexOf(Math.min(...scan));
    let low = grid[Math.max(best - 1, 0)], high = grid[Math.min(best + 1, 48)];
    const golden = (Math.sqrt(5) - 1) / 2;
    let left = high - golden * (high - low), right = low + golden * (high - low);
    let atLeft = misfit(left), atRight = misfit(right);
    for (let k = 0; k < 27; k++) {
      if (atLeft < atRight) {
        [high, right, atRight] = [right, left, atLeft];
        left = high - golden * (high - low);
        atLeft = misfit(left);
      } else {
        [low, left, atLeft] = [left, right, atRight];
        right = low + golden * (high - low);
        atRight = misfit(right);
      }
    }
    const alpha = (low + high) / 2;
    return { alpha, misfit: misfit(alpha) };
  }

  /* Values that Ricker's map x' = x exp(r (1 - x)) visits in the long run, `keep` of them. */
  function rickerAttractor(r, keep = 120, burn = 400) {
    const visited = new Float64Array(keep);
    let x = 0.3;
    for (let step = -burn; step < keep; step++) {
      if (step >= 0) visited[step] = x;
      x *= Math.exp(r * (1 - x));
    }
    return visited;
  }

  /* A quantile of an array of numbers, the value at that rank (kbe_view.band); infinite ones count at their end. */
  function quantile(values, q) {
    const sorted = Float64Array.from(values).sort();
    return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];
  }

  // ----------------------------------------------------------------------------------------- settings and the address

  const number = (label, min, max, value, steps, more) => ({ kind: "number", label, min, max, value, steps, ...more });
  const integer = (label, min, max, value, steps, more) => ({ ...number(label, min, max, value, steps, more), kind: "integer" });
  const choice = (label, values, value, more) => ({ kind: "choice", label, values, value, ...more });
  const names = (table) => Object.fromEntries(Object.keys(table).map((name) => [name, name]));

  /* Everything that can be set: key in the address -> kind, words, limits, default, and the steps of its slider. */
  const SETTINGS = {
    N: integer("points N", 1, 256, 20, [1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 256]),
    lr: number("learning rate η", 1e-4, 1, 0.1, [0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1]),
    bits: integer("bits b", 3, 10, 8, [3, 4, 5, 6, 7, 8, 9, 10]),
    mu: choice("readout of μ", names(READOUTS), "sigmoid"),
    sigma: choice("readout of σ", names(READOUTS), "sigmoid"),
    loss: choice(
      "likelihood",
      {
        gaussian: "Gaussian (eq. 8)",
        laplace: "Laplace",
        student_t: "Student-t, ν = 3",
        "beta-0.5": "Gaussian, β-NLL, β = ½",
        "beta-1": "Gaussian, β-NLL, β = 1",
        printed: "eq. 14 as printed",
      },
      "gaussian",
    ),
    remedy: choice(
      "remedy",
      { none: "none", floor: "floor for σ", clip: "gradient clipping", slow: "smaller step" },
      "none",
    ),
    floor: number("floor for σ", 0.001, 1, 0.1, [0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5], { only: "floor" }),
    clip: number("largest gradient norm", 0.001, 100, 1, [0.01, 0.03, 0.1, 0.3, 1, 3, 10], { only: "clip" }),
    slow: number("step divided by", 1, 1000, 10, [2, 3, 5, 10, 30, 100], { only: "slow" }),
    M: integer("networks", 1, 64, 48, [1, 8, 16, 32, 48, 64]),
    net: integer("network shown", 1, 64, 1, Array.from({ length: 64 }, (_, k) => k + 1)),
    speed: integer("epochs per second", 1, 100000, 20, [2, 5, 10, 20, 50, 100, 200, 500, 1000, 100000]),
    seed: integer("seed", 1, 999999, 1),
    epoch: integer("epoch", 0, 20000, 0),
  };

  const defaults = () => Object.fromEntries(Object.entries(SETTINGS).map(([key, { value }]) => [key, value]));
  const quote = (text) => `“${text.length > 24 ? `${text.slice(0, 24)}…` : text}”`;

  /* One setting from its text: { value, complaint }; a complaint is a sentence, or undefined. */
  function parseSetting(key, text) {
    const { kind, label, min, max, value, values } = SETTINGS[key];
    if (kind === "choice") {
      if (Object.hasOwn(values, text)) return { value: text };
      return { value, complaint: `${label} cannot be ${quote(text)}; ${values[value]} is used.` };
    }
    const pattern = kind === "integer" ? /^\d{1,9}$/ : /^\d{1,9}(\.\d{1,17})?(e-?\d{1,2})?$/;
    if (!pattern.test(text)) return { value, complaint: `${label} cannot be ${quote(text)}; ${value} is used.` };
    const given = Number(text), used = Math.min(max, Math.max(min, given));
    if (used === given) return { value: used };
    return { value: used, complaint: `${label} must lie between ${min} and ${max}; ${used} is used.` };
  }

  /* The settings of an address, "N=1,lr=0.1,epoch=30" with or without "#", and what was wrong with it in words.
     Nothing is taken over that is not one of SETTINGS and within its limits. */
  function parseAddress(hash) {
    const settings = defaults(), complaints = [], seen = new Set();
    const text = hash.replace(/^#/, "");
    if (text.length > 400) return { settings, complaints: ["The address is too long; the usual settings are used."] };
    for (const part of text.split(",").filter(Boolean)) {
      const at = part.indexOf("="), key = at < 0 ? part : part.slice(0, at);
      if (!Object.hasOwn(SETTINGS, key) || at < 0) complaints.push(`The address has no setting ${quote(part)}.`);
      else if (seen.has(key)) complaints.push(`The address sets ${SETTINGS[key].label} twice; the first is used.`);
      else {
        seen.add(key);
        const { value, complaint } = parseSetting(key, part.slice(at + 1));
        settings[key] = value;
        if (complaint) complaints.push(complaint);
      }
    }
    if (settings.net > settings.M) {
      complaints.push(`There are ${settings.M} networks; network 1 is shown.`);
      settings.net = 1;
    }
    return { settings, complaints };
  }

  /* The shortest address of given settings: what is not the default. */
  function writeAddress(settings) {
    const parts = Object.entries(SETTINGS).filter(([key, { value, only }]) => {
      return settings[key] !== value && (!only || only === settings.remedy);
    });
    return parts.map(([key]) => `${key}=${settings[key]}`).join(",");
  }

  // --------------------------------------------------------------------------------------------- ensembles and files

  const CHANNELS = 3;

  /* M networks in their initial state.  Weights depend on the seed, the network and the bits alone, and data on these
     and, point by point, on N: what else is changed, the pairs stay. */
  function makeEnsemble(settings) {
    const objective = makeObjective(settings);
    return Array.from({ length: settings.M }, (_, k) => {
      const theta = drawWeights(settings.bits, CHANNELS, generator(settings.seed, k, 0));
      return new Network(theta, drawData(settings.N, settings.bits, generator(settings.seed, k, 1)), CHANNELS, objective);
    });
  }

  const FORMAT = "kbe-lab 1";
  const WHAT_IS_TRAINED = ["lr", "mu", "sigma", "loss", "remedy", "floor", "clip", "slow"];

  function nest(flat, shape) {
    if (shape.length === 1) return Array.from(flat);
    const part = flat.length / shape[0];
    return Array.from({ length: shape[0] }, (_, k) => nest(flat.slice(k * part, (k + 1) * part), shape.slice(1)));
  }

  /* The state of an ensemble as an object for JSON: parameters under the names and shapes of kbe_lib, each with a
     leading axis of M networks; x (M, N, b) and y (M, N); null in failed_at and frozen_at means never. */
  function exportState(networks, settings) {
    const { channels, data: { bits }, epoch } = networks[0];
    const params = {};
    let offset = 0;
    for (const [name, shape] of parameterShapes(bits, channels)) {
      const start = offset, end = offset + size(shape);
      params[name] = networks.map((network) => nest(network.theta.slice(start, end), shape));
      offset = end;
    }
    const orNull = (value) => (value === Infinity ? null : value);
    return {
      format: FORMAT,
      settings: Object.fromEntries(WHAT_IS_TRAINED.map((key) => [key, settings[key]])),
      epoch,
      params,
      x: networks.map(({ data }) => nest(data.x, [data.y.length, bits])),
      y: networks.map(({ data }) => Array.from(data.y)),
      failed_at: networks.map(({ failedAt }) => orNull(failedAt)),
      frozen_at: networks.map(({ frozenAt }) => orNull(frozenAt)),
    };
  }

  function require(condition, message) {
    if (!condition) throw new Error(message);
  }

  /* A nested array of the given shape, flat, if every entry passes the test. */
  function flatten(name, nested, shape, test) {
    require(Array.isArray(nested) && nested.length === shape[0], `${name} must have ${shape[0]} entries on each level of its kind`);
    if (shape.length > 1) return nested.flatMap((part) => flatten(name, part, shape.slice(1), test));
    require(nested.every(test), `${name} has an entry that is not allowed`);
    return nested;
  }

  /* An ensemble from what exportState made, or a Python program: { networks, settings, bits, nPoints }.
     Throws an Error that names what is wrong; nothing of a wrong file is used. */
  function importState(state) {
    require(state !== null && typeof state === "object", "the file must hold an object");
    require(state.format === FORMAT, `format must be “${FORMAT}”`);
    require(state.params !== null && typeof state.params === "object", "params must be an object");
    const settings = defaults();
    for (const [key, value] of Object.entries(state.settings ?? {})) {
      require(WHAT_IS_TRAINED.includes(key), `settings cannot have ${quote(key)}`);
      const { value: used, complaint } = parseSetting(key, String(value));
      require(!complaint, `settings: ${complaint}`);
      settings[key] = used;
    }
    const M = state.x?.length, N = state.x?.[0]?.length, bits = state.x?.[0]?.[0]?.length;
    const within = (value, key) => Number.isInteger(value) && value >= SETTINGS[key].min && value <= SETTINGS[key].max;
    require(within(M, "M"), "x must have 1 to 64 networks");
    require(within(N, "N"), "x must have 1 to 256 points");
    require(within(bits, "bits"), "x must have 3 to 10 bits");
    const channels = state.params["conv1.bias"]?.[0]?.length;
    require(Number.isInteger(channels) && channels >= 1 && channels <= 8, "conv1.bias must have 1 to 8 channels");
    const isBit = (value) => value === 0 || value === 1;
    const x = flatten("x", state.x, [M, N, bits], isBit), y = flatten("y", state.y, [M, N], isBit);
    const thetas = Array.from({ length: M }, () => []);
    for (const [name, shape] of parameterShapes(bits, channels)) {
      const values = flatten(name, state.params[name], [M, ...shape], Number.isFinite);
      values.forEach((value, k) => thetas[Math.floor(k / size(shape))].push(value));
    }
    const epoch = state.epoch ?? 0;
    require(Number.isInteger(epoch) && epoch >= 0 && epoch <= 1e9, "epoch must be a whole number, not negative");
    const times = (name) => {
      const given = state[name] ?? Array(M).fill(null);
      return flatten(name, given, [M], (value) => value === null || (Number.isInteger(value) && value >= 0));
    };
    const failedAt = times("failed_at"), frozenAt = times("frozen_at"), objective = makeObjective(settings);
    const networks = thetas.map((theta, k) => {
      const data = { bits, x: Uint8Array.from(x.slice(k * N * bits, (k + 1) * N * bits)), y: Uint8Array.from(y.slice(k * N, (k + 1) * N)) };
      const network = new Network(theta, data, channels, objective);
      return Object.assign(network, { epoch, failedAt: failedAt[k] ?? Infinity, frozenAt: frozenAt[k] ?? Infinity });
    });
    Object.assign(settings, { M, N, bits, epoch: 0 });
    return { networks, settings };
  }

  return {
    CHANNELS, JUMP, LAYERS, LOSSES, READOUTS, SETTINGS, Network,
    defaults, drawData, drawWeights, exportState, generator, importState, largestEigenvalue, makeEnsemble, makeObjective,
    parameterShapes, parseAddress, pointGradient, pointLoss, pointWeight, predictionScale, quantile, ricker,
    rickerAttractor, stability, uniform, writeAddress,
  };
})();
