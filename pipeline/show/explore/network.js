"use strict";
// The network of the page: numbers from text, matrix products, and the CVAE at any KL weight.
// A batch of rows is one Float32Array, row after row.

/** Base64 to bytes. */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** A matrix whose numbers are kept as whole steps, in a few bits each. Each row has a step size of its own. */
function matrixOf({ bits, sizes, steps }) {
  const bytes = bytesOf(steps), ofRows = new Float32Array(bytesOf(sizes).buffer);
  const rows = ofRows.length, columns = Math.floor((8 * bytes.length) / bits / rows);
  const numbers = new Float32Array(rows * columns), zero = 2 ** (bits - 1) - 1;
  let held = 0, left = 0, at = 0; // bits that were read and belong to the next number
  for (let i = 0; i < numbers.length; i++) {
    for (; left < bits; left += 8) held = (held << 8) | bytes[at++];
    left -= bits;
    numbers[i] = ((held >> left) - zero) * ofRows[Math.floor(i / columns)];
    held &= (1 << left) - 1;
  }
  return { rows, columns, numbers };
}

/** Rows (count × matrix.rows) times a matrix. Zeros, which most pixels and most units after relu are, cost nothing. */
function product(left, { rows, columns, numbers }) {
  const count = left.length / rows, result = new Float32Array(count * columns);
  for (let n = 0; n < count; n++) {
    const sums = result.subarray(n * columns, (n + 1) * columns), factors = [], starts = [];
    for (let i = 0; i < rows; i++) {
      const factor = left[n * rows + i];
      if (factor !== 0) { factors.push(factor); starts.push(i * columns); }
    }
    while (factors.length % 4) { factors.push(0); starts.push(0); }
    for (let k = 0; k < factors.length; k += 4) { // four at once: a sum is read and written once for them
      const p = factors[k], q = factors[k + 1], r = factors[k + 2], s = factors[k + 3];
      const a = starts[k], b = starts[k + 1], c = starts[k + 2], d = starts[k + 3];
      for (let o = 0; o < columns; o++) {
        sums[o] += p * numbers[a + o] + q * numbers[b + o] + r * numbers[c + o] + s * numbers[d + o];
      }
    }
  }
  return result;
}

/** Where a weight lies among rising weights, on a log scale: between `left` and `left + 1`, `share` of the way. */
function placeAmong(weights, weight) {
  let left = 0;
  while (left < weights.length - 2 && weights[left + 1] <= weight) left++;
  const share = Math.log(weight / weights[left]) / Math.log(weights[left + 1] / weights[left]);
  return { left, share: Math.min(Math.max(share, 0), 1) };
}

/** A row of a table (places × width) between two of its rows. */
function between(table, width, { left, share }) {
  const row = new Float32Array(width), a = left * width, b = a + width;
  for (let i = 0; i < width; i++) row[i] = table[a + i] + share * (table[b + i] - table[a + i]);
  return row;
}

function relu(rows) {
  for (let i = 0; i < rows.length; i++) if (rows[i] < 0) rows[i] = 0;
  return rows;
}

function sigmoid(rows) {
  for (let i = 0; i < rows.length; i++) rows[i] = 1 / (1 + Math.exp(-rows[i]));
  return rows;
}

/** Rows (count × width) with a one-hot label beside each: (count × (width + 10)). */
function withLabels(rows, labels) {
  const width = rows.length / labels.length, wide = width + 10;
  const joined = new Float32Array(labels.length * wide);
  labels.forEach((label, n) => {
    joined.set(rows.subarray(n * width, (n + 1) * width), n * wide);
    joined[n * wide + width + label] = 1;
  });
  return joined;
}

/** The CVAE. encode: pixels (count × 784) to q(z∣x,y). decode: latents to expected pixels. kl: nats of each row. */
function networkOf(kept) {
  const [low, high] = kept.range.map(Math.log);
  const layerOf = ({ weights, scale, shift }) =>
    ({ weights: matrixOf(weights), scale: matrixOf(scale), shift: matrixOf(shift) });
  const encoder = kept.encoder.map(layerOf), decoder = kept.decoder.map(layerOf);
  const mu = layerOf(kept.mu), logVar = layerOf(kept.log_var), pixels = layerOf(kept.pixels);
  const condition = kept.condition.map(layerOf), seesLabel = (encoder[0] ?? mu).weights.rows > 784;

  /** The Chebyshev polynomials of log β, of which the scale and the shift of each layer are sums. */
  function polynomials(weight) {
    const place = Math.min(Math.max((2 * (Math.log(weight) - low)) / (high - low) - 1, -1), 1);
    return Float32Array.from({ length: mu.scale.rows }, (_, k) => Math.cos(k * Math.acos(place)));
  }

  function linear(layer, rows, terms) {
    const result = product(rows, layer.weights), width = layer.weights.columns;
    const scale = product(terms, layer.scale), shift = product(terms, layer.shift);
    for (let i = 0; i < result.length; i++) result[i] = result[i] * scale[i % width] + shift[i % width];
    return result;
  }

  /** Latents with their labels: beside them, or joined with what a layer makes of the labels. */
  function conditioned(z, labels, terms) {
    if (kept.conditioning === "concat") return withLabels(z, labels);
    const told = relu(linear(condition[0], withLabels(new Float32Array(0), labels), terms));
    const join = { sum: (a, b) => a + b, mean: (a, b) => (a + b) / 2, product: (a, b) => a * b }[kept.conditioning];
    return z.map((value, i) => join(value, told[i]));
  }

  const through = (layers, rows, terms) => layers.reduce((x, layer) => relu(linear(layer, x, terms)), rows);
  return {
    latents: mu.weights.columns,
    encode(images, labels, weight) {
      const terms = polynomials(weight);
      const features = through(encoder, seesLabel ? withLabels(images, labels) : images, terms);
      return { mu: linear(mu, features, terms), log_var: linear(logVar, features, terms) };
    },
    decode(z, labels, weight) {
      const terms = polynomials(weight);
      return sigmoid(linear(pixels, through(decoder, conditioned(z, labels, terms), terms), terms));
    },
    kl(q) {
      const width = mu.weights.columns, rates = new Float32Array(q.mu.length / width);
      q.mu.forEach((m, i) => {
        rates[Math.floor(i / width)] += (m * m + Math.exp(q.log_var[i]) - q.log_var[i] - 1) / 2;
      });
      return rates;
    },
  };
}

/** The mixtures fitted to each digit's latents, which change with the weight: component by component, linearly. */
function densitiesOf({ weights, ...kept }) {
  const tables = Object.entries(kept).map(([name, table]) => [name, matrixOf(table)]);
  const { shares: { columns: components }, means: { columns: latents } } = Object.fromEntries(tables);
  return {
    at(weight) {
      const place = placeAmong(weights, weight);
      const now = Object.fromEntries(tables.map(([name, { numbers }]) =>
        [name, between(numbers, numbers.length / weights.length, place)]));
      return {
        /** A latent of a digit; choice: uniform, chooses the component; noise: standard normal. */
        sample(digit, choice, noise) {
          let component = digit * components, rest = choice;
          while (component < (digit + 1) * components - 1 && rest >= now.shares[component]) {
            rest -= now.shares[component++];
          }
          const z = now.means.slice(component * latents, (component + 1) * latents);
          let at = (component * latents * (latents + 1)) / 2;
          for (let i = 0; i < latents; i++) {
            for (let j = 0; j <= i; j++) z[i] += now.roots[at++] * noise[j]; // a lower triangle, row by row
          }
          return z;
        },
        /** The same style for any digit: the digit's mean, and the symmetric root of its covariance times noise. */
        style(digit, noise) {
          const z = now.style_means.slice(digit * latents, (digit + 1) * latents);
          for (let i = 0; i < latents; i++) {
            const row = (digit * latents + i) * latents;
            for (let j = 0; j < latents; j++) z[i] += now.style_roots[row + j] * noise[j];
          }
          return z;
        },
      };
    },
  };
}
