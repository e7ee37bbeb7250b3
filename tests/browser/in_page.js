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
        // a subgraph's widgets have the number of their node in front
        const found = widgets.find(w => w.name === widget || w.name.endsWith(`: ${widget}`));
        if (found) return found;
        throw new Error(`${name} has no widget ${widget}: it has ${widgets.map(w => w.name)}.`);
    },

    // The middle of a widget, in pixels of the window.
    place(name, widget) {
        const [node, found] = [this.node(name), this.widget(name, widget)];
        const { left, top } = app.canvas.canvas.getBoundingClientRect();
        const inside = [node.pos[0] + node.size[0] / 2, node.pos[1] + found.last_y + 10];
        const [x, y] = app.canvas.ds.convertOffsetToCanvas(inside);
        return [left + x, top + y];
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

    setInside(name, settings) {
        for (const node of this.node(name).subgraph.nodes) {
            for (const [widget, value] of Object.entries(settings[node.type] ?? {})) {
                node.widgets.find(w => w.name === widget).value = value;
            }
        }
    },

    connect(type, to, slots) {
        const [node, target] = [LiteGraph.createNode(type), this.node(to)];
        app.graph.add(node);
        node.pos = [target.pos[0] - 500, target.pos[1] + 300 * app.graph.nodes.length];
        for (const [output, input] of Object.entries(slots)) {
            node.connect(node.findOutputSlot(output), target, target.findInputSlot(input));
        }
    },

    // Brings a node to the middle of the window at its full size; its frame there: left, top, width, height.
    show(name) {
        const [node, view] = [this.node(name), app.canvas.ds];
        const { left, top, width, height } = app.canvas.canvas.getBoundingClientRect();
        const [x, y, w, h] = node.boundingRect;
        const at = [Math.round((width - w) / 2), Math.round((height - h) / 2)];
        view.scale = 1;
        view.offset = [at[0] - x, at[1] - y];
        app.canvas.setDirty(true, true);
        return [left + at[0], top + at[1], w, h];
    },

    // A graph of one node.
    only(type) {
        app.graph.clear();
        app.graph.add(LiteGraph.createNode(type));
    },

    pressButton(name, widget) {
        this.widget(name, widget).callback();
    },

    // Closes notes that lie over the page's right upper corner; true when none is left but errors.
    closeNotes() {
        const notes = document.querySelectorAll(".p-toast-message:not(.p-toast-message-error)");
        notes.forEach(note => note.querySelector("button")?.click());
        return notes.length === 0;
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

    // Which wires run under a node: wires as the front end drew them that cross a node's frame. Slots lie up
    // to INSIDE pixels inside it.
    coveredWires() {
        const INSIDE = 14, STEP = 4;
        const pen = document.createElement("canvas").getContext("2d");
        pen.lineWidth = STEP + 2;
        const frames = app.graph.nodes.map(node => {
            const [left, top, width, height] = node.boundingRect;
            const steps = length => Array.from({length: Math.ceil(length / STEP)}, (_, i) => i * STEP);
            return [node.title, [
                ...steps(height).flatMap(y => [[left + INSIDE, top + y], [left + width - INSIDE, top + y]]),
                ...steps(width - 2 * INSIDE).flatMap(x => [
                    [left + INSIDE + x, top + 2], [left + INSIDE + x, top + height - 2]]),
            ]];
        });
        const covered = new Set();
        for (const link of app.graph.links.values()) {
            const [source, target] = [link.origin_id, link.target_id].map(id => app.graph.getNodeById(id).title);
            for (const {path} of [link, ...this.reroutes(link)]) {
                const frame = frames.find(([, points]) => points.some(at => pen.isPointInStroke(path, ...at)));
                if (frame) covered.add(`${source} -> ${target} under ${frame[0]}`);
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

    // Nodes that lie partly outside the window.
    outside() {
        const { width, height } = app.canvas.canvas.getBoundingClientRect();
        return app.graph.nodes.filter(node => {
            const [x, y, w, h] = node.boundingRect;
            const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y]);
            const [right, bottom] = app.canvas.ds.convertOffsetToCanvas([x + w, y + h]);
            return left < 0 || top < 0 || right > width || bottom > height;
        }).map(node => node.title);
    },

    // The points that a wire is led through.
    reroutes(link) {
        const points = [];
        for (let id = link.parentId; id != null; id = app.graph.reroutes.get(id).parentId) {
            points.unshift(app.graph.reroutes.get(id));
        }
        return points;
    },
};

for (const banner of ["vueNodesBannerDismissed", "comfy.vueNodesMigration.dismissed"]) {
    localStorage.setItem(banner, "true");  // they offer the other renderer
}
