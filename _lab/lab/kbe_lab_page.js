/* The laboratory on the page: controls, plots and words around kbe_lab.js.

   Builds itself inside the element with the class kbe-lab.  What can be set lies in the address, so that a reader can
   share what is seen; the address is read by kbeLab.parseAddress, and nothing in it becomes markup or code. */
"use strict";

(() => {
  const { SETTINGS, makeEnsemble, parseAddress, predictionScale, quantile, stability, writeAddress } = kbeLab;
  const RESTARTS = ["N", "lr", "bits", "mu", "sigma", "loss", "remedy", "floor", "clip", "slow", "M", "seed"];
  const MOST_LINES = 40; // points of the shown network that are drawn by epoch
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  /* An element with attributes, event handlers (functions) and children. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  /* A number for the eye: three digits, powers of ten where it is very small or large. */
  function show(value) {
    if (value === Infinity) return "∞";
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  }

  // ------------------------------------------------------------------------------------------------------------ plots

  /* Axes on a canvas.  `draw` clears, draws the frame and hands a pen whose methods take data coordinates. */
  class Plot {
    constructor(title, caption, legend = []) {
      this.canvas = make("canvas", { role: "img", "aria-label": title });
      const keys = legend.map(([name, words]) => make("span", { class: `kbe-lab-key kbe-lab-${name}` }, words));
      this.figure = make("figure", {}, make("figcaption", {}, make("strong", {}, title), " ", caption), this.canvas, ...keys);
      this.background = {};
      this.inSight = true;
      this.moving = false; // while it is, a plot that is scrolled away is not drawn: on a phone most of them are
      new IntersectionObserver((entries) => (this.inSight = entries.at(-1).isIntersecting)).observe(this.canvas);
    }

    say(words) {
      this.canvas.setAttribute("aria-label", words);
    }

    draw({ x, y, logX = false, logY = false, xLabel, yLabel }, colors, content) {
      const ratio = globalThis.devicePixelRatio || 1, width = this.canvas.clientWidth, height = Math.round(width * 0.66);
      if (width === 0 || (this.moving && !this.inSight)) return;
      if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
        this.canvas.width = Math.round(width * ratio);
        this.canvas.height = Math.round(height * ratio);
      }
      const pen = this.canvas.getContext("2d"), left = 46, right = 14, top = 20, bottom = 34;
      const scale = ([low, high], log, from, to) => {
        const f = log ? Math.log10 : (value) => value, a = f(low), b = f(high);
        return (value) => from + ((to - from) * (Math.min(Math.max(f(value), a - (b - a)), b + (b - a)) - a)) / (b - a);
      };
      const px = scale(x, logX, left, width - right), py = scale(y, logY, height - bottom, top);
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, width, height);
      pen.font = "12px sans-serif";
      pen.lineWidth = 1;
      pen.strokeStyle = pen.fillStyle = colors.ink;
      pen.beginPath();
      pen.moveTo(left, top);
      pen.lineTo(left, height - bottom);
      pen.lineTo(width - right, height - bottom);
      for (const tick of ticks(x, logX)) {
        pen.moveTo(px(tick), height - bottom);
        pen.lineTo(px(tick), height - bottom + 4);
        pen.textAlign = "center";
        pen.fillText(tickLabel(tick, logX), px(tick), height - bottom + 16);
      }
      for (const tick of ticks(y, logY)) {
        pen.moveTo(left, py(tick));
        pen.lineTo(left - 4, py(tick));
        pen.textAlign = "right";
        pen.fillText(tickLabel(tick, logY), left - 6, py(tick) + 4);
      }
      pen.stroke();
      pen.textAlign = "left";
      pen.fillText(yLabel, 4, 12);
      pen.textAlign = "right";
      pen.fillText(xLabel, width - right, height - 4);
      pen.save();
      pen.beginPath();
      pen.rect(left, top, width - right - left, height - bottom - top);
      pen.clip();
      content({ pen, px, py, left, right: width - right, top, bottom: height - bottom });
      pen.restore();
    }
  }

  function ticks([low, high], log) {
    if (log) {
      const from = Math.ceil(Math.log10(low) - 1e-9), to = Math.floor(Math.log10(high) + 1e-9);
      const every = Math.max(1, Math.ceil((to - from) / 5));
      return Array.from({ length: Math.floor((to - from) / every) + 1 }, (_, k) => 10 ** (from + k * every));
    }
    const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) => (first + k) * step);
  }

  const SUPERSCRIPTS = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  function tickLabel(tick, log) {
    if (!log) return show(tick);
    const power = Math.round(Math.log10(tick));
    return power === 0 ? "1" : power === 1 ? "10" : `10${[...String(power)].map((sign) => SUPERSCRIPTS[sign]).join("")}`;
  }

  function line(axes, xs, ys, color, { dash = [], width = 1.6 } = {}) {
    const { pen, px, py } = axes;
    pen.strokeStyle = color;
    pen.lineWidth = width;
    pen.setLineDash(dash);
    pen.beginPath();
    let down = false;
    for (let k = 0; k < xs.length; k++) {
      if (ys[k] === null || Number.isNaN(ys[k])) {
        down = false;
      } else {
        if (down) pen.lineTo(px(xs[k]), py(ys[k]));
        else pen.moveTo(px(xs[k]), py(ys[k]));
        down = true;
      }
    }
    pen.stroke();
    pen.setLineDash([]);
  }

  function band(axes, xs, low, high, color) {
    const { pen, px, py } = axes, known = xs.map((_, k) => k).filter((k) => low[k] !== null);
    if (known.length < 2) return;
    pen.globalAlpha = 0.2;
    pen.fillStyle = color;
    pen.beginPath();
    for (const k of known) pen.lineTo(px(xs[k]), py(low[k]));
    for (const k of known.reverse()) pen.lineTo(px(xs[k]), py(high[k]));
    pen.fill();
    pen.globalAlpha = 1;
  }

  function dot({ pen, px, py, left, right, top, bottom }, x, y, color, radius) {
    // what lies outside is shown at the border
    const at = [Math.min(Math.max(px(x), left + radius), right - radius), Math.min(Math.max(py(y), top + radius), bottom - radius)];
    pen.fillStyle = color;
    pen.beginPath();
    pen.arc(...at, radius, 0, 2 * Math.PI);
    pen.fill();
    return at;
  }

  function horizontal(axes, y, words, color) {
    const { pen, py, left, right, top, bottom } = axes, at = Math.min(Math.max(py(y), top + 1), bottom - 1);
    pen.strokeStyle = pen.fillStyle = color;
    pen.lineWidth = 1.4;
    pen.setLineDash([6, 4]);
    pen.beginPath();
    pen.moveTo(left, at);
    pen.lineTo(right, at);
    pen.stroke();
    pen.setLineDash([]);
    pen.textAlign = "right";
    pen.fillText(words, right - 4, at > top + 16 ? at - 5 : at + 14);
  }

  // ------------------------------------------------------------------------------------------------------- laboratory

  /* Epochs to keep: all of the first 256, then ever fewer, so that any training fits and any part of it is seen. */
  const isKept = (epoch) => epoch % 2 ** Math.max(0, Math.floor(Math.log2(Math.max(epoch, 1) / 256)) + 1) === 0;

  class Laboratory {
    constructor(root) {
      this.root = root;
      this.build();
      this.fromAddress();
      if (location.hash) this.root.scrollIntoView();
      addEventListener("hashchange", () => {
        this.fromAddress();
        this.root.scrollIntoView({ behavior: calm.matches ? "auto" : "smooth" });
      });
      new MutationObserver(() => this.draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
      new ResizeObserver(() => this.draw()).observe(root);
    }

    // ------------------------------------------------------------------------------------------------------- state

    /* Settings from the address, or from data-start where that says nothing. */
    fromAddress() {
      const { settings, complaints } = parseAddress(location.hash || this.root.dataset.start || "");
      this.settings = settings;
      this.complain(complaints);
      this.restart(settings.epoch);
    }

    /* A new ensemble, the settings' own or a given one, trained to an epoch. */
    restart(target = 0, networks = undefined) {
      this.imported = networks;
      this.networks = networks ?? makeEnsemble(this.settings);
      this.start = this.networks.map(({ theta, epoch, failedAt, frozenAt }) => ({ theta: theta.slice(), epoch, failedAt, frozenAt }));
      this.epoch = this.start[0].epoch;
      this.target = this.epoch + target;
      this.history = [];
      this.keep();
      this.follow();
      this.syncControls();
      this.writeAddress();
      this.wake();
    }

    /* The shown network is trained once more on its own and looked at closely; it catches up when another is chosen. */
    follow() {
      const index = this.settings.net - 1, { theta, ...since } = this.start[index], { data, channels, objective } = this.networks[index];
      this.shown = Object.assign(new kbeLab.Network(theta, data, channels, objective), since);
      this.trail = [];
      this.look();
    }

    /* One line of the ensemble's history. */
    keep() {
      const sound = this.networks.filter(({ failedAt }) => failedAt === Infinity);
      const variances = this.networks.map((network) => network.variances());
      const spread = (values) => [0.1, 0.5, 0.9].map((q) => quantile(values, q));
      const enough = sound.length >= this.networks.length / 2 && this.settings.N > 1; // one point has no neighbours
      this.history.push({
        epoch: this.epoch,
        V: spread(variances.map(({ V }) => V)),
        Vstar: spread(variances.map(({ Vstar }) => Vstar)),
        loss: spread(this.networks.map((network) => network.loss()).map((loss) => (Number.isNaN(loss) ? Infinity : loss))),
        alpha: enough ? spread(sound.map((network) => predictionScale(network).alpha)) : [null, null, null],
        sound: sound.length / this.networks.length,
      });
    }

    /* One line of the shown network's history. */
    look() {
      const { mu, sigma } = this.shown.pointOutputs();
      this.trail.push({ epoch: this.shown.epoch, mu, sigma, failed: this.shown.failedAt <= this.shown.epoch, ...stability(this.shown) });
    }

    /* Trains until `epochs` are done or the time is up. */
    advance(epochs, milliseconds) {
      const until = performance.now() + milliseconds;
      while (this.shown.epoch < this.epoch) {
        this.shown.step();
        if (isKept(this.shown.epoch) || this.shown.epoch === this.epoch) this.look();
        if (performance.now() > until) return 0;
      }
      let done = 0;
      while (done < epochs && this.epoch - this.start[0].epoch < SETTINGS.epoch.max) {
        for (const network of this.networks) network.step();
        this.shown.step();
        this.epoch += 1;
        done += 1;
        if (isKept(this.epoch)) {
          this.keep();
          this.look();
        }
        if (performance.now() > until) break;
      }
      return done;
    }

    get behind() {
      return this.epoch < this.target || this.shown.epoch < this.epoch;
    }

    // --------------------------------------------------------------------------------------------------------- time

    run() {
      this.running = !this.running;
      this.owed = 0;
      this.syncControls();
      if (!this.running) this.settle();
      this.wake();
    }

    step() {
      this.running = false;
      this.target = Math.max(this.target, this.epoch + 1);
      this.syncControls();
      this.wake();
    }

    /* What is due when training stops: the last epoch on record, the address, and words. */
    settle() {
      if (this.history.at(-1).epoch !== this.epoch) this.keep();
      if (this.trail.at(-1).epoch !== this.shown.epoch) this.look();
      this.writeAddress();
      this.draw();
      this.announce();
    }

    wake() {
      if (this.awake) return;
      this.awake = true;
      this.before = performance.now();
      requestAnimationFrame((now) => this.tick(now));
    }

    tick(now) {
      const passed = Math.min(now - this.before, 200);
      this.before = now;
      if (this.behind) {
        this.count(this.advance(this.target - this.epoch, 60));
        if (!this.behind && !this.running) this.settle();
      } else if (this.running) {
        this.owed = Math.min(this.owed + (this.settings.speed * passed) / 1000, this.settings.speed);
        const done = this.advance(Math.floor(this.owed), 20);
        this.owed -= done;
        this.count(done);
        const over = this.epoch - this.start[0].epoch >= SETTINGS.epoch.max || this.networks.every(({ frozenAt }) => frozenAt <= this.epoch);
        if (over) this.run();
      }
      if (now - (this.drawn ?? -Infinity) > (calm.matches ? 1000 : this.behind ? 300 : 30)) {
        this.drawn = now;
        this.draw();
      }
      if (now - (this.announced ?? 0) > 8000) this.announce();
      this.awake = this.behind || this.running;
      if (this.awake) requestAnimationFrame((later) => this.tick(later));
      else this.draw();
    }

    /* Network steps per second, over the last second or so. */
    count(epochs) {
      const now = performance.now();
      if (!(now - this.counted?.since < 1000)) {
        if (this.counted) this.rate = (1000 * this.counted.steps) / (now - this.counted.since);
        this.counted = { since: now, steps: 0 };
      }
      this.counted.steps += epochs * (this.networks.length + 1);
    }

    // ----------------------------------------------------------------------------------------------------- controls

    build() {
      this.controls = {};
      const control = (key) => this.makeControl(key);
      this.runButton = make("button", { type: "button", click: () => this.run() }, "Run");
      const buttons = make(
        "div",
        { class: "kbe-lab-buttons" },
        this.runButton,
        make("button", { type: "button", click: () => this.step() }, "Step"),
        make("button", { type: "button", click: () => this.again(this.settings.seed) }, "Reset"),
        make("button", { type: "button", click: () => this.again((this.settings.seed % SETTINGS.seed.max) + 1) }, "New seed"),
      );
      this.complaints = make("div", { class: "kbe-lab-complaints", role: "alert" });
      this.summary = make("p", { class: "kbe-lab-summary" });
      this.live = make("p", { class: "kbe-lab-hidden", "aria-live": "polite" });
      this.failures = make("p");
      const file = make("input", { type: "file", accept: ".json,application/json", change: () => this.importFile(file) });
      this.plots = {
        plane: new Plot("Error and σ of every point.", "Arrows: the descent direction of the loss of one point.", [["grey", "all networks"], ["blue", "the shown network"], ["red", "σ = √(ηΘ/2), below which the step of μ overshoots"]]),
        ricker: new Plot("On the bifurcation diagram of the Ricker map.", "Grey: what the map visits in the long run at each r.", [["grey", "N = 1: all sound networks"], ["blue", "the points of the shown network, each as if alone"], ["red", "r = 2, the period doubling; ✕ a failure"]]),
        sigma: new Plot("σ of the shown network by epoch.", "A line per point.", [["orange", "σ"]]),
        mu: new Plot("μ of the shown network by epoch.", "A line per point.", [["blue", "label 1"], ["purple", "label 0"]]),
        variances: new Plot("V and V* by epoch.", "Median and 10–90 % of the networks.", [["blue", "V = ⟨(y−μ)²⟩"], ["orange", "V* = ⟨σ²⟩"], ["guide", "share of sound networks"]]),
        edge: new Plot("ηS of the shown network by epoch.", "Step size times sharpness.", [["green", "ηS"], ["red", "the edge, 2"]]),
        loss: new Plot("Loss by epoch.", "Median and 10–90 % of the networks.", [["solid", "mean loss per point"]]),
        alpha: new Plot("Prediction scale α by epoch.", "Median and 10–90 % of the sound networks, while half of them are.", [["blue", "α (1/bit)"]]),
      };
      this.root.replaceChildren(
        make("div", { class: "kbe-lab-controls", role: "group", "aria-label": "What is trained" },
          ...["N", "lr", "bits", "mu", "sigma", "loss", "remedy", "floor", "clip", "slow", "M", "seed"].map(control)),
        buttons,
        make("div", { class: "kbe-lab-controls", role: "group", "aria-label": "What is shown" }, control("speed"), control("net")),
        this.complaints, this.summary, this.live,
        make("div", { class: "kbe-lab-plots" }, ...Object.values(this.plots).map(({ figure }) => figure)),
        make("details", {}, make("summary", {}, "Failures"), this.failures),
        make("details", {}, make("summary", {}, "Save or load a state"),
          make("div", { class: "kbe-lab-buttons" },
            make("button", { type: "button", click: () => this.exportFile() }, "Save as JSON"),
            make("label", {}, "Load JSON ", file))),
      );
    }

    makeControl(key) {
      const { kind, label, values, steps, min, max } = SETTINGS[key];
      const id = `kbe-lab-${key}`, output = make("output", { for: id });
      let input;
      if (kind === "choice") {
        const options = Object.entries(values).map(([value, words]) => make("option", { value }, words));
        input = make("select", { id, change: () => this.set(key, input.value) }, ...options);
      } else if (steps) {
        input = make("input", { id, type: "range", min: 0, max: steps.length - 1, step: 1, input: () => this.set(key, steps[input.value]) });
      } else {
        input = make("input", { id, type: "number", min, max, step: 1, change: () => this.setText(key, input.value) });
      }
      const element = make("div", { class: "kbe-lab-control" }, make("label", { for: id }, label, steps ? ": " : "", output), input);
      this.controls[key] = { element, input, output };
      return element;
    }

    syncControls() {
      for (const [key, { element, input, output }] of Object.entries(this.controls)) {
        const { steps, only } = SETTINGS[key], value = this.settings[key];
        element.hidden = only !== undefined && only !== this.settings.remedy;
        if (steps) {
          if (key === "net") input.max = this.settings.M - 1;
          const nearest = steps.reduce((best, step, k) => (Math.abs(Math.log(step / value)) < Math.abs(Math.log(steps[best] / value)) ? k : best), 0);
          const words = key === "speed" && value >= SETTINGS.speed.max ? "as fast as it goes" : String(value);
          input.value = nearest;
          input.setAttribute("aria-valuetext", words);
          output.value = words;
        } else {
          input.value = value;
        }
      }
      this.runButton.textContent = this.running ? "Pause" : "Run";
    }

    set(key, value) {
      this.settings[key] = value;
      this.settings.net = Math.min(this.settings.net, this.settings.M);
      this.complain([]);
      if (RESTARTS.includes(key)) this.restart();
      else {
        if (key === "net") this.follow();
        this.syncControls();
        this.writeAddress();
        this.wake();
      }
    }

    setText(key, text) {
      const { settings, complaints } = parseAddress(`${key}=${text}`);
      this.set(key, settings[key]);
      this.complain(complaints);
    }

    again(seed) {
      this.running = false;
      if (this.imported && seed === this.settings.seed) {
        const networks = this.imported.map((network, k) => {
          const { theta, ...since } = this.start[k];
          return Object.assign(new kbeLab.Network(theta, network.data, network.channels, network.objective), since);
        });
        this.restart(0, networks);
      } else {
        this.settings.seed = seed;
        this.restart();
      }
      this.announce();
    }

    complain(complaints) {
      this.complaints.replaceChildren(...complaints.map((words) => make("p", {}, words)));
    }

    writeAddress() {
      const epoch = Math.max(this.epoch, this.target);
      const address = this.imported ? "" : writeAddress({ ...this.settings, epoch: Math.min(epoch, SETTINGS.epoch.max) });
      const told = location.hash.slice(1) || this.root.dataset.start || "";
      if (address !== told) history.replaceState(null, "", address ? `#${address}` : location.pathname + location.search);
    }

    exportFile() {
      const text = JSON.stringify(kbeLab.exportState(this.networks, this.settings));
      const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      make("a", { href: url, download: `laboratory-epoch-${this.epoch}.json` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    }

    async importFile(input) {
      const file = input.files[0];
      if (!file) return;
      try {
        if (file.size > 1e7) throw new Error("the file is larger than 10 MB");
        const { networks, settings } = kbeLab.importState(JSON.parse(await file.text()));
        this.running = false;
        this.settings = { ...settings, speed: this.settings.speed };
        this.complain(["A loaded state has no address; share its file."]);
        this.restart(0, networks);
        this.announce();
      } catch (error) {
        this.complain([`${file.name} was not loaded: ${error.message}.`]);
      }
      input.value = "";
    }

    // -------------------------------------------------------------------------------------------------------- words

    words() {
      const failed = this.networks.filter(({ failedAt }) => failedAt <= this.epoch), M = this.networks.length;
      const frozen = this.networks.filter(({ frozenAt }) => frozenAt <= this.epoch).length;
      const { V, Vstar, alpha } = this.history.at(-1), { etaS, epoch, r } = this.trail.at(-1);
      const parts = [`Epoch ${this.epoch}.`];
      if (failed.length === 0) parts.push(`All ${M} networks are sound.`);
      else {
        const at = failed.map(({ failedAt }) => failedAt);
        parts.push(`${failed.length} of ${M} networks have failed, the first at epoch ${Math.min(...at)}, half of these by epoch ${quantile(at, 0.5)}.`);
      }
      if (frozen > 0) parts.push(`${frozen} of ${M} are no longer finite and stand still.`);
      parts.push(`Median V is ${show(V[1])}, V* is ${show(Vstar[1])}${alpha[1] === null ? "" : `, α is ${show(alpha[1])} per bit`}.`);
      const failedAt = this.shown.failedAt;
      parts.push(`Network ${this.settings.net}, epoch ${epoch}: ηS is ${show(etaS)}, ${etaS > 2 ? "beyond" : "below"} the edge at 2`
        + `${this.settings.N === 1 ? `; r is ${show(r[0])}` : ""}${failedAt <= epoch ? `; failed at epoch ${failedAt}` : ""}.`);
      return parts.join(" ");
    }

    announce() {
      this.announced = performance.now();
      this.live.textContent = this.words();
    }

    // ------------------------------------------------------------------------------------------------------ picture

    draw() {
      if (!this.history?.length || !this.trail?.length) return;
      const style = getComputedStyle(this.root);
      const colors = Object.fromEntries(["ink", "blue", "orange", "green", "red", "purple", "grey"].map((name) => [name, style.getPropertyValue(`--kbe-lab-${name}`).trim()]));
      const waiting = this.behind ? ` Training to epoch ${this.target} …` : "";
      const rate = (this.running || this.behind) && this.rate ? ` ${Math.round(this.rate).toLocaleString("en")} network steps per second.` : "";
      this.summary.textContent = this.words() + waiting + rate;
      const failures = this.networks.map(({ failedAt }, k) => [failedAt, k + 1]).filter(([at]) => at <= this.epoch).sort((a, b) => a[0] - b[0]);
      this.failures.textContent = failures.length ? failures.map(([at, k]) => `network ${k}: epoch ${at}`).join("; ") : "No network has failed yet.";
      for (const plot of Object.values(this.plots)) plot.moving = this.running || this.behind;
      this.drawPlane(colors);
      this.drawRicker(colors);
      this.drawTrails(colors);
      this.drawHistory(colors);
    }

    get xByEpoch() {
      return [this.start[0].epoch, Math.max(this.epoch, this.start[0].epoch + 20)];
    }

    drawPlane(colors) {
      const { networks, shown, settings } = this, { floor } = this.trail.at(-1), { loss } = shown.objective;
      const errors = ({ mu }, y) => Array.from(mu, (value, i) => Math.abs(y[i] - value));
      this.plots.plane.draw({ x: [0, 1], y: [0, 1], xLabel: "error |y − μ|", yLabel: "σ" }, colors, (axes) => {
        const { pen, px, py } = axes;
        pen.strokeStyle = colors.grey;
        pen.lineWidth = 1;
        for (let e = 0.04; e < 1; e += 0.08) {
          for (let s = 0.04; s < 1; s += 0.08) {
            const u = e / s, slope = loss.slope(u);
            const dx = -slope / s, dy = -((loss.printed ? s : 1) - u * slope) / s, length = Math.hypot(dx, dy);
            const ax = (7 * dx) / length, ay = (-7 * dy) / length, [x, y] = [px(e), py(s)];
            pen.globalAlpha = Math.min(1, 0.25 + 0.2 * Math.log10(1 + length));
            pen.beginPath();
            pen.moveTo(x - ax, y - ay);
            pen.lineTo(x + ax, y + ay);
            pen.lineTo(x + 0.3 * ax - 0.4 * ay, y + 0.3 * ay + 0.4 * ax);
            pen.moveTo(x + ax, y + ay);
            pen.lineTo(x + 0.3 * ax + 0.4 * ay, y + 0.3 * ay - 0.4 * ax);
            pen.stroke();
          }
        }
        pen.globalAlpha = 0.45;
        for (const network of networks) {
          for (let s = 0; s < network.z.length / 2; s++) {
            for (let label = 0; label < 2; label++) {
              if (network.counts[2 * s + label] > 0) dot(axes, Math.abs(network.outputs[2 * s] - label), Math.abs(network.outputs[2 * s + 1]), colors.grey, 2);
            }
          }
        }
        pen.globalAlpha = 1;
        const now = this.trail.at(-1), y = shown.data.y;
        if (settings.N === 1) line(axes, this.trail.map((t) => errors(t, y)[0]), this.trail.map((t) => Math.abs(t.sigma[0])), colors.blue, { width: 1 });
        errors(now, y).forEach((error, i) => dot(axes, error, Math.abs(now.sigma[i]), colors.blue, 3.5));
        horizontal(axes, floor, "√(ηΘ/2)", colors.red);
      });
      const now = this.trail.at(-1), e = errors(now, shown.data.y);
      this.plots.plane.say(`Plane of error and sigma at epoch ${now.epoch}. Network ${settings.net}: median error ${show(quantile(e, 0.5))}, `
        + `median sigma ${show(quantile(now.sigma.map(Math.abs), 0.5))}; its smallest sigma is ${show(Math.min(...now.sigma.map(Math.abs)))}, the marked edge lies at ${show(floor)}.`);
    }

    /* The map's diagram is drawn once for each size and colour. */
    drawRicker(colors) {
      const plot = this.plots.ricker, { settings, shown } = this, applies = "gaussian beta-0.5 beta-1".includes(settings.loss);
      plot.draw({ x: [0, 8], y: [0.01, 100], logY: true, xLabel: "r", yLabel: "x = q / q*" }, colors, (axes) => {
        const { pen, px, py, left, right, top, bottom } = axes, key = [plot.canvas.width, plot.canvas.height, colors.grey].join();
        if (plot.background.key !== key) {
          const picture = make("canvas", { width: plot.canvas.width, height: plot.canvas.height }), brush = picture.getContext("2d");
          const ratio = plot.canvas.width / plot.canvas.clientWidth;
          brush.scale(ratio, ratio);
          brush.fillStyle = colors.grey;
          brush.globalAlpha = 0.3;
          for (let column = left; column < right; column += 0.75) {
            for (const x of kbeLab.rickerAttractor((8 * (column - left)) / (right - left))) brush.fillRect(column, py(x), 0.9, 0.9);
          }
          plot.background = { key, picture };
        }
        pen.drawImage(plot.background.picture, 0, 0, plot.canvas.clientWidth, py(0.01) + 34);
        pen.strokeStyle = pen.fillStyle = colors.red;
        pen.setLineDash([6, 4]);
        pen.beginPath();
        pen.moveTo(px(2), top);
        pen.lineTo(px(2), bottom);
        pen.stroke();
        pen.setLineDash([]);
        if (!applies) {
          pen.fillStyle = colors.ink;
          pen.textAlign = "center";
          pen.fillText("The map belongs to the Gaussian likelihood.", (left + right) / 2, top + 20);
          return;
        }
        const inside = (r, x) => Number.isFinite(r) && x >= 0 && r > 0;
        const sound = this.trail.filter(({ failed }) => !failed);
        if (settings.N === 1) {
          pen.globalAlpha = 0.7;
          for (const network of this.networks) {
            if (network.failedAt <= this.epoch) continue;
            const { r, x } = kbeLab.ricker(network);
            if (inside(r[0], x[0])) dot(axes, r[0], x[0], colors.grey, 2.5);
          }
          pen.globalAlpha = 1;
          const past = sound.filter(({ r, x }) => inside(r[0], x[0]));
          line(axes, past.map(({ r }) => r[0]), past.map(({ x }) => x[0]), colors.blue, { width: 1 });
          for (const { r, x } of past) dot(axes, r[0], x[0], colors.blue, 2);
        }
        const last = sound.at(-1);
        if (!last) return;
        last.r.forEach((r, i) => {
          if (!inside(r, last.x[i])) return;
          const [x, y] = dot(axes, r, last.x[i], colors.blue, 4);
          if (shown.failedAt <= this.epoch && settings.N === 1) {
            pen.strokeStyle = colors.red;
            pen.lineWidth = 2;
            pen.beginPath();
            for (const side of [-1, 1]) {
              pen.moveTo(x - 7, y - 7 * side);
              pen.lineTo(x + 7, y + 7 * side);
            }
            pen.stroke();
          }
        });
      });
      const { r, x, epoch } = this.trail.at(-1);
      plot.say(applies
        ? `Ricker diagram at epoch ${epoch}: r from 0 to 8, the period doubling marked at 2. Largest r of network ${settings.net}: ${show(Math.max(...r))}, its x ${show(x[r.indexOf(Math.max(...r))])}.`
        : "Ricker diagram without dots: the map is derived for the Gaussian likelihood.");
    }

    drawTrails(colors) {
      const { shown, settings } = this, every = Math.ceil(this.trail.length / 400);
      const trail = this.trail.filter((_, k) => k % every === 0 || k === this.trail.length - 1);
      const epochs = trail.map(({ epoch }) => epoch), points = Array.from(shown.data.y.slice(0, MOST_LINES));
      const now = this.trail.at(-1), sigmas = Array.from(now.sigma, Math.abs);
      const lowest = Math.max(1e-8, Math.min(...trail.map(({ sigma }) => Math.min(...sigma.map(Math.abs)))));
      const highest = Math.min(1e4, Math.max(1, ...trail.map(({ sigma }) => Math.max(...sigma.map(Math.abs)))));
      const look = { width: points.length > 5 ? 0.9 : 1.6 };
      this.plots.sigma.draw(
        { x: this.xByEpoch, y: [10 ** Math.floor(Math.log10(Math.min(lowest, 0.1))), 10 ** Math.ceil(Math.log10(highest))], logY: true, xLabel: "epoch", yLabel: "σ" },
        colors,
        (axes) => points.forEach((_, i) => line(axes, epochs, trail.map(({ sigma }) => Math.max(Math.abs(sigma[i]), 1e-12)), colors.orange, look)),
      );
      const low = Math.max(-5, Math.min(0, ...trail.map(({ mu }) => Math.min(...mu)))), high = Math.min(6, Math.max(1, ...trail.map(({ mu }) => Math.max(...mu))));
      this.plots.mu.draw({ x: this.xByEpoch, y: [low, high], xLabel: "epoch", yLabel: "μ" }, colors, (axes) =>
        points.forEach((y, i) => line(axes, epochs, trail.map(({ mu }) => mu[i]), y ? colors.blue : colors.purple, { ...look, dash: y ? [] : [5, 3] })));
      const part = settings.N > MOST_LINES ? ` The first ${MOST_LINES} points are drawn.` : "";
      this.plots.sigma.say(`Sigma of the points of network ${settings.net} by epoch: at epoch ${now.epoch} from ${show(Math.min(...sigmas))} to ${show(Math.max(...sigmas))}.${part}`);
      this.plots.mu.say(`Mu of the points of network ${settings.net} by epoch: at epoch ${now.epoch} from ${show(Math.min(...now.mu))} to ${show(Math.max(...now.mu))}.${part}`);
      const values = trail.map(({ etaS }) => Math.max(etaS, 1e-3));
      this.plots.edge.draw(
        { x: this.xByEpoch, y: [0.01, 1000], logY: true, xLabel: "epoch", yLabel: "ηS" }, colors, (axes) => {
          line(axes, epochs, values.map((value) => Math.min(value, 1e4)), colors.green, { dash: [8, 3] });
          horizontal(axes, 2, "ηS = 2", colors.red);
        });
      this.plots.edge.say(`Step size times sharpness of network ${settings.net} by epoch, with the edge marked at 2: ${show(now.etaS)} at epoch ${now.epoch}.`);
    }

    drawHistory(colors) {
      const every = Math.ceil(this.history.length / 400);
      const history = this.history.filter((_, k) => k % every === 0 || k === this.history.length - 1);
      const epochs = history.map(({ epoch }) => epoch), now = this.history.at(-1);
      const pick = (name, q) => history.map((entry) => entry[name][q]);
      const highest = Math.max(...pick("V", 1).filter(Number.isFinite), ...pick("Vstar", 1).filter(Number.isFinite));
      const top = Math.min(10, Math.max(1, highest));
      this.plots.variances.draw({ x: this.xByEpoch, y: [0, top], xLabel: "epoch", yLabel: "variance, share" }, colors, (axes) => {
        band(axes, epochs, pick("V", 0), pick("V", 2), colors.blue);
        band(axes, epochs, pick("Vstar", 0), pick("Vstar", 2), colors.orange);
        line(axes, epochs, pick("V", 1), colors.blue);
        line(axes, epochs, pick("Vstar", 1), colors.orange, { dash: [6, 3] });
        line(axes, epochs, history.map(({ sound }) => sound), colors.grey, { dash: [2, 3] });
      });
      this.plots.variances.say(`V and V-star by epoch: medians ${show(now.V[1])} and ${show(now.Vstar[1])} at epoch ${now.epoch}; ${show(100 * now.sound)} percent of the networks are sound.`);
      const bottom = Math.max(-10, Math.min(0, ...pick("loss", 0))), height = Math.min(10, Math.max(1, ...pick("loss", 2)));
      this.plots.loss.draw({ x: this.xByEpoch, y: [bottom, height], xLabel: "epoch", yLabel: "loss" }, colors, (axes) => {
        band(axes, epochs, pick("loss", 0), pick("loss", 2), colors.green);
        line(axes, epochs, pick("loss", 1), colors.green);
      });
      this.plots.loss.say(`Mean loss by epoch: median ${show(now.loss[1])} at epoch ${now.epoch}.`);
      const most = Math.max(1, ...pick("alpha", 2).filter((value) => value !== null));
      this.plots.alpha.draw({ x: this.xByEpoch, y: [0, most * 1.05], xLabel: "epoch", yLabel: "α (1/bit)" }, colors, (axes) => {
        band(axes, epochs, pick("alpha", 0), pick("alpha", 2), colors.blue);
        line(axes, epochs, pick("alpha", 1), colors.blue);
      });
      this.plots.alpha.say(now.alpha[1] === null
        ? "Prediction scale alpha by epoch: none now, with a single point or with fewer than half of the networks sound."
        : `Prediction scale alpha by epoch: median ${show(now.alpha[1])} per bit at epoch ${now.epoch}.`);
    }
  }

  for (const root of document.querySelectorAll(".kbe-lab")) root.laboratory = new Laboratory(root);
})();
