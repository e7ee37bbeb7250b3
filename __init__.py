"""ComfyUI entry of the pack. Outside ComfyUI (where `comfy_api` does not import) this module does nothing."""

try:
    import comfy_api  # noqa: F401
except ModuleNotFoundError:
    pass
else:
    from .nodes import AnomalyDiffusion

    WEB_DIRECTORY = "./nodes/web"

    async def comfy_entrypoint() -> AnomalyDiffusion:
        return AnomalyDiffusion()
