// Browsers start no worker for a page opened from a folder. There the worker of the search runs in
// a hidden frame instead, which gets messages and answers as a worker does.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<script>
        window.postMessage = (data) => parent.dispatchEvent(
          new MessageEvent("frame-message", { data })
        );
      </script><script src="${url}"></script>`;
      this.started = new Promise((resolve) => (frame.onload = () => resolve(frame.contentWindow)));
      addEventListener("frame-message", ({ data }) =>
        this.dispatchEvent(new MessageEvent("message", { data }))
      );
      document.body.append(frame);
    }

    postMessage(data) {
      this.started.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
