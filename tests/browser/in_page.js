// What tests ask of ComfyUI's page, put into it before its own scripts run.

window.adiff = {
    cardPrefix: "template-workflow-",

    // Names of the templates that the template browser shows.
    cards() {
        return [...document.querySelectorAll(`[data-testid^=${this.cardPrefix}]`)]
            .map(card => card.dataset.testid.slice(this.cardPrefix.length));
    },

    shows(names) {
        const shown = this.cards();
        return shown.length === names.length && names.every(name => shown.includes(name));
    },

    // The one node of this title, type or id.
    node(name) {
        const nodes = app.graph.nodes;
        const fits = nodes.filter(n => String(n.id) === name || n.title === name || n.type === name);
        if (fits.length === 1) return fits[0];
        const known = nodes.map(n => `${n.id} ${n.title}`).join(", ");
        throw new Error(`${fits.length || "No"} nodes are called ${name}: there are ${known}.`);
    },

    widget(name, widget) {
        const widgets = this.node(name).widgets ?? [];
        const found = widgets.find(w => w.name === widget);
        if (found) return found;
        throw new Error(`${name} has no widget ${widget}: it has ${widgets.map(w => w.name)}.`);
    },

    setWidget(name, widget, value) {
        const found = this.widget(name, widget);
        const values = found.type === "combo" ? found.options.values : null;
        const offered = typeof values === "function" ? values() : values;
        if (offered && !offered.includes(value)) {
            throw new Error(`${widget} of ${name} offers ${offered}, not ${value}.`);
        }
        found.value = value;
        found.callback?.(value, app.canvas, this.node(name));
    },

    // Red nodes, refusals and failures of the last run, error messages, open dialogs.
    complaints() {
        const shown = selector => [...document.querySelectorAll(selector)]
            .filter(element => element.getClientRects().length)
            .map(element => element.innerText.trim().replace(/\s+/g, " ").slice(0, 400));
        const red = app.graph.nodes.filter(n => n.has_errors).map(n => `${n.title} is red`);
        const refused = Object.entries(app.lastNodeErrors ?? {})
            .map(([id, errors]) => `node ${id}: ${JSON.stringify(errors)}`);
        const error = app.lastExecutionError;
        const failed = error ? [`${error.node_type}: ${error.exception_message}`] : [];
        return [...red, ...refused, ...failed, ...shown(".p-toast-message-error"), ...shown("[role=dialog]")];
    },

    // Which wires run under a node: points of their curves, as the front end draws them, within its frame.
    coveredWires() {
        const INSIDE = 12;  // a slot lies this far inside its node
        const frames = app.graph.nodes.map(n => [n.title, n.boundingRect]);
        const covering = ([x, y]) => frames.find(([, [left, top, width, height]]) =>
            x > left + INSIDE && x < left + width - INSIDE && y > top && y < top + height);
        const covered = new Set();
        for (const link of app.graph.links.values()) {
            const source = app.graph.getNodeById(link.origin_id);
            const target = app.graph.getNodeById(link.target_id);
            const stops = [source.getConnectionPos(false, link.origin_slot), ...this.reroutes(link),
                target.getConnectionPos(true, link.target_slot)];
            for (let i = 1; i < stops.length; i++) {
                const frame = this.curve(stops[i - 1], stops[i]).map(covering).find(found => found);
                if (frame) covered.add(`${source.title} -> ${target.title} under ${frame[0]}`);
            }
        }
        return [...covered];
    },

    // Pairs of nodes whose frames overlap.
    overlappingNodes() {
        const overlap = ([left, top, width, height], [x, y, w, h]) =>
            x < left + width && left < x + w && y < top + height && top < y + h;
        const nodes = app.graph.nodes;
        return nodes.flatMap((one, i) => nodes.slice(i + 1)
            .filter(other => overlap(one.boundingRect, other.boundingRect))
            .map(other => `${one.title} over ${other.title}`));
    },

    // Places of the points that a wire is led through.
    reroutes(link) {
        const places = [];
        for (let id = link.parentId; id != null; id = app.graph.reroutes.get(id).parentId) {
            places.unshift(app.graph.reroutes.get(id).pos);
        }
        return places;
    },

    // Points between two stops of a wire: a cubic curve whose handles are a quarter of the distance long.
    curve([x0, y0], [x3, y3]) {
        const reach = 0.25 * Math.hypot(x3 - x0, y3 - y0);
        return Array.from({length: 39}, (_, k) => {
            const t = (k + 1) / 40, u = 1 - t;
            const [a, b, c, d] = [u ** 3, 3 * u * u * t, 3 * u * t * t, t ** 3];
            return [a * x0 + b * (x0 + reach) + c * (x3 - reach) + d * x3, (a + b) * y0 + (c + d) * y3];
        });
    },
};

for (const banner of ["vueNodesBannerDismissed", "comfy.vueNodesMigration.dismissed"]) {
    localStorage.setItem(banner, "true");  // they offer the other renderer
}
