// Open Report: a button that opens the page which the node has just written.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const LABEL = "Open in the browser";

// ComfyUI hands HTML files out as downloads; the page is opened from memory instead. It holds all that it needs.
async function open(node) {
  const opened = window.open("", "_blank"); // now, since browsers let only a click open a window
  const answer = await api.fetchApi(node.adiffReport);
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
    const button = node.addWidget("button", LABEL, null, () => open(node), { serialize: false });
    button.serialize = false;
    button.disabled = true;
    const executed = node.onExecuted;
    node.onExecuted = function (message) {
      executed?.apply(this, arguments);
      this.adiffReport = message?.adiff_report?.[0];
      button.disabled = !this.adiffReport;
      this.setDirtyCanvas?.(true, true);
    };
  },
});
