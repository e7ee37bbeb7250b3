// Open Report: where the page is that the node has written, and a button that opens it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

// ComfyUI hands HTML files out as downloads; the page is opened from memory instead. It holds all that it needs.
async function open(address) {
  const opened = window.open("", "_blank"); // now, since browsers let only a click open a window
  const answer = await api.fetchApi(address);
  if (!answer.ok) {
    opened?.close();
    alert("The report is not there any more: run Open Report again.");
    return;
  }
  const page = new Blob([await answer.text()], { type: "text/html" });
  if (opened) opened.location = URL.createObjectURL(page);
}

app.registerExtension({
  name: "AnomalyDiffusion.OpenReport",
  nodeCreated(node) {
    if (node.comfyClass !== "ADiff_Report") return;
    let address = null;
    const said = node.addWidget("text", "written", "run the node to write the page", null, { serialize: false });
    const button = node.addWidget("button", "Open in the browser", null, () => address && open(address), { serialize: false });
    said.serialize = button.serialize = false; // a workflow keeps inputs alone
    button.disabled = true;
    const executed = node.onExecuted;
    node.onExecuted = function (message) {
      executed?.apply(this, arguments);
      address = message?.adiff_report?.[0] ?? null;
      said.value = message?.text?.[0] ?? "";
      button.disabled = !address;
      this.setDirtyCanvas?.(true, true);
    };
  },
});
